// Attention with AVX2, FMA and F16C.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "attention.h"

#include "avx2_begin.h"

namespace packlight {
namespace {

#include "floats_avx2.h"

constexpr int kStrip = 4;
inline __m128i words(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline Floats load_f16(const uint16_t* p) { return _mm256_cvtph_ps(words(p)); }
inline Floats load_bf16(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words(p)), 16));
}

#include "attention_kernel.h"

}  // namespace

void attend_avx2(const Block& block, float* space, const Partial& result) { attend(block, space, result); }

}  // namespace packlight

#include "avx2_end.h"

#endif  // defined(__x86_64__)
