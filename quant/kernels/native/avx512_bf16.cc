// AVX-512 with its unit for bfloat16: BF16 weights meet activations rounded to bfloat16, two columns at a time. Twice the
// speed of float32's, which all other formats' products stay with.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "weights.h"
#include "workspace.h"

#include "avx512_bf16_begin.h"

namespace packlight {
namespace {

#include "floats_avx512.h"

constexpr int kManyGroups = 4;  // with 6 tokens 24 sums, of 32 registers

#include "numbers.h"

// Two columns, the first of each row in the lower half of its lane. The unit rounds after each of the two products and
// takes subnormals for zeros, weights and activations alike.
struct ReadPairs {
  using Unit = __m512i;
  using Value = Pair;
  static constexpr int kColumns = 2, kBytes = 4 * kLanes;
  static const Pair* values(const Activations& x) { return x.pairs; }
  static Unit spread(const Pair* value) {
    int both;
    std::memcpy(&both, value, 4);
    return _mm512_set1_epi32(both);
  }
  static Floats add(Floats sum, Unit weights, Unit value) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)value);
  }
  static Unit unit(const uint8_t* at) {
    const Unit order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                        23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, _mm512_loadu_si512(at));
  }
  static Unit last(const uint8_t* at) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
};

// Half to even, as everyone rounds float32 to bfloat16. What is not finite stays so.
inline uint16_t rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t up = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16, nan = bits >> 16 | 0x40;
  return static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? nan : up);
}

inline void quantize(const float* values, const Activations& x, int64_t row) {
  if (x.rounding != Rounding::pairs) return kAvx512.quantize(values, x, row);
  Pair* pairs = x.pairs + row * x.pairs_of(x.width);
  for (int64_t i = 0; i < x.width / 2; ++i) pairs[i] = {rounded(values[2 * i]), rounded(values[2 * i + 1])};
  if (x.width % 2) pairs[x.width / 2] = {rounded(values[x.width - 1]), 0};
}

Multiply find(Type type) { return type == BF16 ? multiply<ReadPairs> : kAvx512.multiply(type); }

}  // namespace

const Kernels kAvx512Bf16 = {kLanes, quantize, find, true};

}  // namespace packlight

#include "avx512_end.h"

#endif  // defined(__x86_64__)
