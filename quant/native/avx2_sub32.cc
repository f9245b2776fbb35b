// Super-blocks of 8 sub-blocks of 32 elements with AVX2: their sources (avx2_vectors.h says what a source is) and
// kernels.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>
#include <initializer_list>
#include <utility>

#include "weights.h"

#include "avx2_begin.h"

namespace packlight {
namespace {

#include "quantize.h"
#include "avx2_vectors.h"
#include "avx2_dot.h"
#include "avx2_tile.h"

// d dmin scales[12] (qh[32]) qs[128]: the 6-bit scales of 8 rows at once; see quant/kquants.py for their bits.
template <int kDepth_, int kOuter_, int kInner_>
struct SourceQ45K : Source256<32, kDepth_, false, kOuter_, kInner_> {
  explicit SourceQ45K(const uint8_t* b) {
    const __m256i low = at(b + 8 * 4), mid = at(b + 8 * 8), high = at(b + 8 * 12);
    pairs_of_quad(field<0>(low, 63), this->sc);
    pairs_of_quad(field<0>(mid, 63), this->mn);
    pairs_of_quad(_mm256_or_si256(field<0>(high, 15), field<2>(low, 48)), this->sc + 2);
    pairs_of_quad(_mm256_or_si256(field<4>(high, 15), field<2>(mid, 48)), this->mn + 2);
    this->d = halves(b), this->dmin = halves(b + 16);
  }
};

struct SourceQ4K : SourceQ45K<8, 4, 2> {  // 2 * 8 * 15 * 127 = 30480
  const uint8_t* qs;
  explicit SourceQ4K(const uint8_t* b) : SourceQ45K(b), qs(b + 8 * 16) {}
  template <int kNibble>
  __m256i load(int i, int v) const { return field<4 * kNibble>(at(qs + 32 * (8 * i + v)), 15); }
};

struct SourceQ5K : SourceQ45K<4, 1, 8> {  // 2 * 4 * 31 * 127 = 31496
  const uint8_t *qh, *qs;
  explicit SourceQ5K(const uint8_t* b) : SourceQ45K(b), qh(b + 8 * 16), qs(b + 8 * 48) {}
  template <int kI>
  __m256i load(int, int v) const {
    return _mm256_or_si256(field<kI % 2 * 4>(at(qs + 32 * (kI / 2 * 8 + v)), 15), field<kI - 4>(at(qh + 32 * v), 16));
  }
};

// d scales_h:u16 scales_l[4] qs[128]
struct SourceIQ4XS : Source256<32, 1, true, 4, 2> {
  const uint8_t* qs;
  explicit SourceIQ4XS(const uint8_t* b) : qs(b + 8 * 8) {
    const __m256i low = at(b + 8 * 4), high = _mm256_cvtepu16_epi32(at16(b + 8 * 2));
    pair<0>(low, high);
    pair<1>(low, high);
    pair<2>(low, high);
    pair<3>(low, high);
    d = halves(b), dmin = _mm256_setzero_ps();
  }
  template <int kP>
  void pair(__m256i low, __m256i high) {  // nibbles 2p, 2p + 1 of scales_l, bit pairs 2p, 2p + 1 of scales_h
    const __m256i fifteen = _mm256_set1_epi32(15), three = _mm256_set1_epi32(3);
    const __m256i a = _mm256_and_si256(_mm256_srli_epi32(low, 8 * kP), fifteen);
    const __m256i b = _mm256_and_si256(_mm256_srli_epi32(low, 8 * kP + 4), fifteen);
    const __m256i c = _mm256_and_si256(_mm256_srli_epi32(high, 4 * kP), three);
    const __m256i e = _mm256_and_si256(_mm256_srli_epi32(high, 4 * kP + 2), three);
    const __m256i nibbles = _mm256_or_si256(a, _mm256_slli_epi32(b, 16));
    const __m256i tops = _mm256_or_si256(_mm256_slli_epi32(c, 4), _mm256_slli_epi32(e, 20));
    sc[kP] = _mm256_sub_epi16(_mm256_or_si256(nibbles, tops), _mm256_set1_epi16(32));
  }
  template <int kI>
  __m256i load(int o, int v) const { return iq4_values(run_nibbles(qs + 8 * 16 * (2 * o + kI), v)); }
};

}  // namespace

Multiply avx2_sub32(Type type) {
  switch (type) {
    case Q4_K: return multiply<Q4_K, SourceQ4K, Panel256<32, 8, false>>;
    case Q5_K: return multiply<Q5_K, SourceQ5K, Panel256<32, 4, false>>;
    case IQ4_XS: return multiply<IQ4_XS, SourceIQ4XS, Panel256<32, 1, true>>;
    default: return nullptr;
  }
}

namespace {

Multiply find(Type type) {
  for (const auto part : {avx2_sub16, avx2_sub32, avx2_block32}) {
    if (const Multiply multiply = part(type)) return multiply;
  }
  return nullptr;
}

}  // namespace

const Kernels kAvx2 = {quantize, find};

}  // namespace packlight

#include "avx2_end.h"

#endif  // defined(__x86_64__)
