// Attention with AVX2, FMA and F16C.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

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
inline Floats load_int8(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

using Ints = __m256i;
inline Ints load_ints(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Ints splat_int(int32_t x) { return _mm256_set1_epi32(x); }
inline Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
constexpr int kShift = 0;
struct Keys {
  Ints value, magnitude;
};
inline Keys keyed(Ints words) { return {words, _mm256_abs_epi8(words)}; }
// maddubs takes unsigned times signed: keys give their magnitude, and their sign to queries. Two products of 127 * 127
// fit an int16.
inline Ints dot4(const Keys& key, Ints x, Ints sum) {
  const Ints pairs = _mm256_maddubs_epi16(key.magnitude, _mm256_sign_epi8(x, key.value));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

constexpr int kMostFew = 8;  // one sum a row in 16 registers
inline float largest(Floats x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

template <KvType kType>
inline void halves_of(const uint32_t* line, Floats& first, Floats& second) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line));
  if constexpr (kType == KvType::bf16) {
    first = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
    second = _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xFFFF0000)));
  } else {
    const __m256i apart = _mm256_shuffle_epi8(
        x, _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7,
                            10, 11, 14, 15));
    const __m256i halves = _mm256_permute4x64_epi64(apart, 0xD8);
    first = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
    second = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
  }
}

#include "transpose_x86.h"

inline void transpose_words(const uint8_t* keys, int64_t pitch, uint32_t* to) {
  const uint8_t* rows[kLanes];
  for (int r = 0; r < kLanes; ++r) rows[r] = keys + r * pitch;
  transpose(rows, 0, reinterpret_cast<uint8_t*>(to), 4 * kLanes);
}

#include "attention_kernel.h"

}  // namespace

void attend_avx2(const Block& block, float* space, const Partial& result) { attend(block, space, result); }

}  // namespace packlight

#include "avx2_end.h"

#endif  // defined(__x86_64__)
