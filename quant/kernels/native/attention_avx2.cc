// Attention with AVX2, FMA and F16C.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "attention.h"

#include "avx2_begin.h"

namespace packlight {
namespace {

constexpr int kLanes = 8, kStrip = 4;
using Floats = __m256;

inline Floats splat(float x) { return _mm256_set1_ps(x); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
inline Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats maximum(Floats a, Floats b) { return _mm256_max_ps(a, b); }  // b where one is NaN
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
