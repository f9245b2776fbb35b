// Blocks of 32 elements with AVX2: their sources (avx2_vectors.h says what a source is) and
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

template <int kDepth_, bool kSigned_, bool kOffset_>
struct Source32 {
  static constexpr int kBlock = 32, kSub = 32, kDepth = kDepth_, kOuter = 1, kInner = 1;
  static constexpr bool kSigned = kSigned_, kOffset = kOffset_;  // kOffset: m is not 0
  __m256 d, m;
  const uint8_t* qs;
};

struct SourceQ40 : Source32<8, false, true> {  // d qs[16]
  explicit SourceQ40(const uint8_t* b) { d = halves(b), m = _mm256_mul_ps(d, _mm256_set1_ps(-8)), qs = b + 16; }
  template <int kI>
  __m256i load(int, int v) const { return run_nibbles(qs, v); }
};

struct SourceQ41 : Source32<8, false, true> {  // d m qs[16]
  explicit SourceQ41(const uint8_t* b) { d = halves(b), m = halves(b + 16), qs = b + 32; }
  template <int kI>
  __m256i load(int, int v) const { return run_nibbles(qs, v); }
};

// (qh[4] qs[16]): bit j of a lane of qh is the fifth of weight j.
struct SourceQ5 : Source32<4, false, true> {
  template <int kI>
  __m256i load(int, int v) const {
    // the byte with this vector's four bits to all bytes of the lane, then one bit each
    const __m256i order = _mm256_add_epi8(both(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0C0C0C0C)), bytes(v / 2));
    const __m256i bit = _mm256_set1_epi32(v % 2 ? static_cast<int>(0x80402010) : 0x08040201);
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(at(qs), order), bit), bit);
    return _mm256_or_si256(run_nibbles(qs + 32, v), _mm256_and_si256(set, bytes(16)));
  }
};

struct SourceQ50 : SourceQ5 {  // d qh[4] qs[16]
  explicit SourceQ50(const uint8_t* b) { d = halves(b), m = _mm256_mul_ps(d, _mm256_set1_ps(-16)), qs = b + 16; }
};

struct SourceQ51 : SourceQ5 {  // d m qh[4] qs[16]
  explicit SourceQ51(const uint8_t* b) { d = halves(b), m = halves(b + 16), qs = b + 32; }
};

struct SourceQ80 : Source32<1, true, false> {  // d qs[32]; 2 * 128 * 127 = 32512
  explicit SourceQ80(const uint8_t* b) { d = halves(b), qs = b + 16; }
  template <int kI>
  __m256i load(int, int v) const { return at(qs + 32 * v); }
};

struct SourceIQ4NL : Source32<1, true, false> {  // d qs[16]
  explicit SourceIQ4NL(const uint8_t* b) { d = halves(b), qs = b + 16; }
  template <int kI>
  __m256i load(int, int v) const { return iq4_values(run_nibbles(qs, v)); }
};

struct SourceMXFP4 : Source32<8, true, false> {  // e qs[16]; 2 * 8 * 12 * 127 = 24384
  explicit SourceMXFP4(const uint8_t* b) {
    const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(b)));
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);  // 2^(e - 128)
    const __m256i tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);                 // for e = 0 and 1
    d = _mm256_castsi256_ps(_mm256_blendv_epi8(normal, tiny, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)));
    qs = b + 8;
  }
  template <int kI>
  __m256i load(int, int v) const { return fp4_values(run_nibbles(qs, v)); }
};

}  // namespace

Multiply avx2_block32(Type type) {
  switch (type) {
    case Q4_0: return multiply<Q4_0, SourceQ40, Panel32<8, false, true>>;
    case Q4_1: return multiply<Q4_1, SourceQ41, Panel32<8, false, true>>;
    case Q5_0: return multiply<Q5_0, SourceQ50, Panel32<4, false, true>>;
    case Q5_1: return multiply<Q5_1, SourceQ51, Panel32<4, false, true>>;
    case Q8_0: return multiply<Q8_0, SourceQ80, Panel32<1, true, false>>;
    case IQ4_NL: return multiply<IQ4_NL, SourceIQ4NL, Panel32<1, true, false>>;
    case MXFP4: return multiply<MXFP4, SourceMXFP4, Panel32<8, true, false>>;
    default: return nullptr;
  }
}

}  // namespace packlight

#include "avx2_end.h"

#endif  // defined(__x86_64__)
