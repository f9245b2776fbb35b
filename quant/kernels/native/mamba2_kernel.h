// One head of Mamba-2, token by token. Included inside each instruction set's namespace and target, which bring Floats,
// kLanes, kRow and the few operations on them.
//
// A lane is a channel, so that nothing is ever added across lanes. A head's memory M stays in the first level of the
// cache while its tokens pass: M = e^fade M + b^T x, y = c M. Chunks, which save passes over a memory that is further
// away, would be more arithmetic.
// Source: Mamba-2 (2405.21060).

#include "exp2.h"

constexpr float kLog2E = 1.44269504088896341f;

// kVecs vectors of channels.
template <int kVecs>
inline void scan_columns(const ScanHead& h, int64_t token, float left, int64_t at) {
  const float *b = h.b + token * h.shared_stride, *c = h.c + token * h.shared_stride;
  const float* x = h.x + token * h.stride + at;
  float *memory = h.memory + at, *out = h.out + token * h.stride + at;
  Floats in[kVecs], sum[kVecs];
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) in[v] = load(x + v * kLanes), sum[v] = splat(0.0f);
  for (int64_t n = 0; n < h.states; ++n, memory += h.channels) {
    const Floats written = splat(b[n]), asked = splat(c[n]);
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      const Floats held = fused(written, in[v], splat(left) * load(memory + v * kLanes));
      store(memory + v * kLanes, held);
      sum[v] = fused(asked, held, sum[v]);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) store(out + v * kLanes, sum[v]);
}

inline void scan(const ScanHead& h) {
  for (int64_t token = 0; token < h.tokens; ++token) {
    const float left = exp2_of(splat(h.fade[token * h.heads] * kLog2E))[0];
    int64_t at = 0;
    for (; at + kRow * kLanes <= h.channels; at += kRow * kLanes) scan_columns<kRow>(h, token, left, at);
    for (; at < h.channels; at += kLanes) scan_columns<1>(h, token, left, at);
  }
}
