// One row of f32 activations to int8, with the sums that kernels want. Included inside each instruction set's namespace
// and target.

#include "quantize_block.h"

template <int kRun>
inline int sum_of(const int8_t* q) {
  int sum = 0;
  for (int i = 0; i < kRun; ++i) sum += q[i];
  return sum;
}

// The quants of a run of 32 in columns of 4 (weights.h).
inline void cross(int8_t* q) {
  int8_t from[32];
  std::memcpy(from, q, 32);
  for (int i = 0; i < 4; ++i) {
    for (int w = 0; w < 8; ++w) q[4 * w + i] = from[8 * i + w];
  }
}

template <int kRun, int kZero>
inline void quantize_small(const float* values, const Activations& x, int64_t row) {
  int8_t* q = x.q + row * x.width;
  int32_t* start = x.start + row * (x.width / kRun);
  for (int64_t b = 0; b < x.width / 32; ++b) {
    x.d[row * (x.width / 32) + b] = quantize_block<32>(values + 32 * b, q + 32 * b);
    for (int r = 0; r < 32 / kRun; ++r) start[32 / kRun * b + r] = -kZero * sum_of<kRun>(q + 32 * b + kRun * r);
    if (x.rounding == Rounding::crossed) cross(q + 32 * b);
  }
}

inline void quantize(const float* values, const Activations& x, int64_t row) {
  if (x.rounding == Rounding::crossed) return quantize_small<32, kCrossedZero>(values, x, row);
  if (x.rounding == Rounding::halved) return quantize_small<16, kHalvedZero>(values, x, row);
  int8_t* q = x.q + row * x.width;
  if (x.rounding == Rounding::by32) {
    for (int64_t b = 0; b < x.width / 32; ++b) {
      const int64_t at = row * (x.width / 32) + b;
      x.d[at] = quantize_block<32>(values + 32 * b, q + 32 * b);
      x.sum[at] = static_cast<int16_t>(sum_of<32>(q + 32 * b));
      x.d_sum[at] = x.d[at] * static_cast<float>(x.sum[at]);
    }
    return;
  }
  for (int64_t b = 0; b < x.width / 256; ++b) {
    const int64_t at = row * (x.width / 256) + b;
    x.d[at] = quantize_block<256>(values + 256 * b, q + 256 * b);
    Sums& sums = x.sums[at];
    for (int s = 0; s < 16; ++s) sums.by16[s] = static_cast<int16_t>(sum_of<16>(q + 256 * b + 16 * s));
    for (int s = 0; s < 8; ++s) sums.by32[s] = static_cast<int16_t>(sums.by16[2 * s] + sums.by16[2 * s + 1]);
    sums.all = 0;
    for (int s = 0; s < 8; ++s) sums.all = static_cast<int16_t>(sums.all + sums.by32[s]);
  }
}
