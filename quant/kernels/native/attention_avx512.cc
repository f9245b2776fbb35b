// Attention with AVX-512.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "attention.h"

#include "avx512_begin.h"

namespace packlight {
namespace {

#include "floats_avx512.h"

constexpr int kStrip = 8;
inline __m256i words(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Floats load_f16(const uint16_t* p) { return _mm512_cvtph_ps(words(p)); }
inline Floats load_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words(p)), 16));
}

#include "attention_kernel.h"

}  // namespace

void attend_avx512(const Block& block, float* space, const Partial& result) { attend(block, space, result); }

}  // namespace packlight

#include "avx512_end.h"

#endif  // defined(__x86_64__)
