// Super-blocks of 16 sub-blocks of 16 elements with AVX2: their sources (avx2_vectors.h says what a source is) and
// kernels.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>
#include <utility>

#include "weights.h"

#include "avx2_begin.h"

namespace packlight {
namespace {

#include "avx2_vectors.h"
#include "avx2_dot.h"
#include "avx2_tile.h"

// scales[16] qs[64] d dmin: low nibbles of scales are sc, high ones mn.
struct SourceQ2K : Source256<16, 4, false, 2, 8> {
  const uint8_t* qs;
  explicit SourceQ2K(const uint8_t* b) : qs(b + 8 * 16) {
    for (int p = 0; p < 8; ++p) {
      const __m256i both16 = _mm256_cvtepu8_epi16(at16(b + 16 * p));
      sc[p] = _mm256_and_si256(both16, _mm256_set1_epi16(15));
      mn[p] = _mm256_srli_epi16(both16, 4);
    }
    d = halves(b + 8 * 80), dmin = halves(b + 8 * 82);
  }
  template <int kI>
  __m256i load(int h, int v) const { return field<kI / 2 * 2>(at(qs + 32 * (8 * h + kI % 2 * 4 + v)), 3); }
};

// hmask[32] qs[64] scales[12] d. Quants stay 0..7: the 4 that ggml subtracts becomes a minimum of 4 * sc.
struct SourceQ3K : Source256<16, 4, false, 2, 8> {
  const uint8_t* b;
  explicit SourceQ3K(const uint8_t* octet) : b(octet) {
    const __m256i low = at(b + 8 * 96), mid = at(b + 8 * 100), high = at(b + 8 * 104);
    quad<0, -4>(low, high, 0);
    quad<0, -2>(mid, high, 2);
    quad<4, 0>(low, high, 4);
    quad<4, 2>(mid, high, 6);
    d = halves(b + 8 * 108), dmin = _mm256_mul_ps(d, _mm256_set1_ps(4));
  }
  template <int kNibble, int kHigh>
  void quad(__m256i low, __m256i high, int p) {
    const __m256i six = _mm256_or_si256(field<kNibble>(low, 15), field<kHigh>(high, 48));
    pairs_of_quad<true>(_mm256_sub_epi8(six, bytes(32)), sc + p);
  }
  __m256i mins(int p) const { return sc[p]; }
  template <int kI>
  __m256i load(int h, int v) const {  // sub-block 8 h + kI, kI = 2 j + c
    constexpr int j = kI / 2, c = kI % 2;
    // h's four bits of hmask come down first; a shift that is not a constant costs less than unrolling over h
    const __m256i bits = _mm256_srl_epi16(at(b + 32 * (4 * c + v)), _mm_cvtsi32_si128(4 * h));
    return _mm256_or_si256(field<2 * j>(at(b + 8 * 32 + 32 * (8 * h + 4 * c + v)), 3), field<j - 2>(bits, 4));
  }
};

// ql[128] qh[64] scales[16] d. Quants stay 0..63: the 32 that ggml subtracts becomes a minimum of 32 * sc.
struct SourceQ6K : Source256<16, 2, false, 2, 8> {  // 2 * 2 * 63 * 127 = 32004
  const uint8_t* b;
  explicit SourceQ6K(const uint8_t* octet) : b(octet) {
    for (int p = 0; p < 8; ++p) sc[p] = _mm256_cvtepi8_epi16(at16(b + 8 * 192 + 16 * p));
    d = halves(b + 8 * 208), dmin = _mm256_mul_ps(d, _mm256_set1_ps(32));
  }
  __m256i mins(int p) const { return sc[p]; }
  template <int kI>
  __m256i load(int h, int v) const {  // sub-block 8 h + kI, kI = 4 n + 2 r + c
    constexpr int n = kI / 4, r = kI / 2 % 2, c = kI % 2;
    const __m256i low = field<4 * n>(at(b + 32 * (16 * h + 8 * r + 4 * c + v)), 15);
    return _mm256_or_si256(low, field<2 * (2 * n + r) - 4>(at(b + 8 * 128 + 32 * (8 * h + 4 * c + v)), 48));
  }
};

}  // namespace

Multiply avx2_sub16(Type type) {
  switch (type) {
    case Q2_K: return multiply<Q2_K, SourceQ2K, Panel256<16, 4, false>>;
    case Q3_K: return multiply<Q3_K, SourceQ3K, Panel256<16, 4, false>>;
    case Q6_K: return multiply<Q6_K, SourceQ6K, Panel256<16, 2, false>>;
    default: return nullptr;
  }
}

}  // namespace packlight

#include "avx2_end.h"

#endif  // defined(__x86_64__)
