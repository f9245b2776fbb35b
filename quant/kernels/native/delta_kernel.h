// One head of a gated delta net. Included inside each instruction set's namespace and target, which bring Floats,
// kLanes, kRow and the few operations on them.
//
// A lane is a value channel, so that nothing is ever added across lanes: channels know nothing of each other, and kRow
// vectors of them go through all tokens while their part of the memory stays near. Tokens are taken one after the
// other, so that their bits do not depend on how many a step has. The memory is gone over once a token: what the next
// token's key stands for is added up while this one is taken in.
// Source: Gated DeltaNet (2412.06464); mixers/deltanet.py has the formulas.

#include "exp2.h"

constexpr float kLog2E = 1.44269504088896341f;

inline float power(float x) { return exp2_of(splat(x))[0]; }

// What `key` stands for in kVecs vectors of the memory's channels: known = k M.
template <int kVecs>
inline void ask(const float* key, int64_t width, const float* memory, Floats* known) {
  Floats sum[kVecs];
#pragma GCC unroll 8
  for (int n = 0; n < kVecs; ++n) sum[n] = splat(0.0f);
  for (int64_t c = 0; c < width; ++c) {
    const Floats x = splat(key[c]);
#pragma GCC unroll 8
    for (int n = 0; n < kVecs; ++n) sum[n] = fused(x, load(memory + c * width + n * kLanes), sum[n]);
  }
#pragma GCC unroll 8
  for (int n = 0; n < kVecs; ++n) known[n] = sum[n];
}

// M = left M + k^T change; out = q M; and where another token follows, known = next M.
template <int kVecs, bool kFollowed>
inline void take_in(const float* q, const float* k, const float* next, const Floats* change, float left, int64_t width,
                    float* memory, Floats* known, float* out) {
  Floats answer[kVecs], sum[kVecs], added[kVecs];
#pragma GCC unroll 8
  for (int n = 0; n < kVecs; ++n) answer[n] = sum[n] = splat(0.0f), added[n] = change[n];
  for (int64_t c = 0; c < width; ++c) {
    const Floats x = splat(k[c]), y = splat(q[c]), z = splat(next[c]);
#pragma GCC unroll 8
    for (int n = 0; n < kVecs; ++n) {
      float* at = memory + c * width + n * kLanes;
      const Floats held = fused(x, added[n], splat(left) * load(at));
      store(at, held);
      answer[n] = fused(y, held, answer[n]);
      if constexpr (kFollowed) sum[n] = fused(z, held, sum[n]);
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < kVecs; ++n) {
    store(out + n * kLanes, answer[n]);
    known[n] = sum[n];
  }
}

// All tokens, for kVecs vectors of value channels from `at` on.
template <int kVecs>
inline void remember_columns(const Head& h, int64_t at) {
  float* memory = h.memory + at;
  Floats known[kVecs], change[kVecs];
  ask<kVecs>(h.k, h.width, memory, known);
  for (int64_t t = 0; t < h.tokens; ++t) {
    const float *q = h.q + t * h.key_stride, *k = h.k + t * h.key_stride, *v = h.v + t * h.value_stride + at;
    const float left = power(h.fade[t * h.stride] * kLog2E);
    const Floats beta = splat(h.beta[t * h.stride]), faded = splat(left);
#pragma GCC unroll 8
    for (int n = 0; n < kVecs; ++n) change[n] = beta * (load(v + n * kLanes) - faded * known[n]);
    float* out = h.out + t * h.value_stride + at;
    if (t + 1 < h.tokens) {
      take_in<kVecs, true>(q, k, k + h.key_stride, change, left, h.width, memory, known, out);
    } else {
      take_in<kVecs, false>(q, k, k, change, left, h.width, memory, known, out);
    }
  }
}

inline void remember(const Head& h) {
  int64_t at = 0;
  for (; at + kRow * kLanes <= h.width; at += kRow * kLanes) remember_columns<kRow>(h, at);
  for (; at < h.width; at += kLanes) remember_columns<1>(h, at);
}
