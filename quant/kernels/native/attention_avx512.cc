// Attention with AVX-512.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

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
inline Floats load_int8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

using Ints = __m512i;
inline Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
inline Ints splat_int(int32_t x) { return _mm512_set1_epi32(x); }
inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
constexpr int kShift = 128;  // the instruction takes unsigned times signed
using Keys = Ints;
inline Keys keyed(Ints words) { return _mm512_xor_si512(words, _mm512_set1_epi32(static_cast<int>(0x80808080u))); }
inline Ints dot4(Keys key, Ints x, Ints sum) { return _mm512_dpbusd_epi32(sum, key, x); }

constexpr int kMostFew = 8;  // sums of 16 rows and a strip of keys' would take all registers
inline float largest(Floats x) { return _mm512_reduce_max_ps(x); }

template <KvType kType>
inline void halves_of(const uint32_t* line, Floats& first, Floats& second) {
  const __m512i x = _mm512_loadu_si512(line);
  if constexpr (kType == KvType::bf16) {
    first = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    second = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(0xFFFF0000)));
  } else {
    first = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x));
    second = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16)));
  }
}

inline void transpose_words(const uint8_t* keys, int64_t pitch, uint32_t* to) {
  __m512i a[16], b[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) a[r] = _mm512_loadu_si512(keys + r * pitch);
#pragma GCC unroll 8
  for (int r = 0; r < 16; r += 2) {
    b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
    b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < 16; r += 4) {  // quarter q of a[r + i] is word 4 q + i of keys r .. r + 3
    a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]);
    a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
    a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]);
    a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i even = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88), odd = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xDD);
    const __m512i even2 = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88),
                  odd2 = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xDD);
    _mm512_storeu_si512(to + 16 * i, _mm512_shuffle_i32x4(even, even2, 0x88));
    _mm512_storeu_si512(to + 16 * (i + 4), _mm512_shuffle_i32x4(odd, odd2, 0x88));
    _mm512_storeu_si512(to + 16 * (i + 8), _mm512_shuffle_i32x4(even, even2, 0xDD));
    _mm512_storeu_si512(to + 16 * (i + 12), _mm512_shuffle_i32x4(odd, odd2, 0xDD));
  }
}

#include "attention_kernel.h"

}  // namespace

void attend_avx512(const Block& block, float* space, const Partial& result) { attend(block, space, result); }

}  // namespace packlight

#include "avx512_end.h"

#endif  // defined(__x86_64__)
