// One head of a gated delta net. Included inside each instruction set's namespace and target, which bring Floats,
// kLanes, kTall, kWide and the few operations on them.
//
// A lane is a value channel, or an earlier token of the chunk, so that nothing is ever added across lanes. A memory M is
// kept from keys to values: M = e^g M, d = beta (v - k M), M = M + k^T d, o = q M. Within a chunk, with g summed up to
// each token, the changes d solve d_i = beta_i (v_i - e^g_i k_i M) - sum_(j < i) beta_i e^(g_i - g_j) (k_i . k_j) d_j.
// Source: Gated DeltaNet (2412.06464).

#include "exp2.h"

constexpr float kLog2E = 1.44269504088896341f;

// Numbers that are multiplied one at a time with rows of another matrix.
struct Left {
  const float* at;
  int64_t row, column;  // floats from one row, and from one column, to the next
};

// out[i] = keep[i] out[i] + sum over c < count of a[i, c] b[c], for kRows rows of kVecs vectors; keep null: 0.
template <int kRows, int kVecs>
inline void add_products(Left a, int64_t count, const float* b, int64_t pitch, const float* keep, float* out,
                         int64_t out_pitch) {
  Floats sum[kRows][kVecs];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      sum[i][v] = keep ? load(out + i * out_pitch + v * kLanes) * splat(keep[i]) : splat(0.0f);
    }
  }
  for (int64_t c = 0; c < count; ++c) {
    Floats x[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) x[v] = load(b + c * pitch + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Floats w = splat(a.at[i * a.row + c * a.column]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) sum[i][v] = fused(w, x[v], sum[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) store(out + i * out_pitch + v * kLanes, sum[i][v]);
  }
}

template <int kVecs>
inline void add_column_products(Left a, int64_t rows, int64_t count, const float* b, int64_t pitch, const float* keep,
                                float* out, int64_t out_pitch) {
  int64_t i = 0;
  for (; i + kTall <= rows; i += kTall) {
    const Left part = {a.at + i * a.row, a.row, a.column};
    add_products<kTall, kVecs>(part, count, b, pitch, keep ? keep + i : nullptr, out + i * out_pitch, out_pitch);
  }
  for (; i < rows; ++i) {
    const Left part = {a.at + i * a.row, a.row, a.column};
    add_products<1, kVecs>(part, count, b, pitch, keep ? keep + i : nullptr, out + i * out_pitch, out_pitch);
  }
}

// The same for any number of rows and of columns, a multiple of kLanes: columns first, so that b's stay near.
inline void multiply(Left a, int64_t rows, int64_t count, const float* b, int64_t pitch, int64_t columns,
                     const float* keep, float* out, int64_t out_pitch) {
  int64_t at = 0;
  for (; at + kWide * kLanes <= columns; at += kWide * kLanes) {
    add_column_products<kWide>(a, rows, count, b + at, pitch, keep, out + at, out_pitch);
  }
  for (; at < columns; at += kLanes) {
    add_column_products<1>(a, rows, count, b + at, pitch, keep, out + at, out_pitch);
  }
}

inline float power(float x) { return exp2_of(splat(x))[0]; }

// One token, for kVecs vectors of value channels.
template <int kVecs>
inline void remember_columns(const float* q, const float* k, const float* v, float beta, float left, int64_t width,
                             float* memory, float* out) {
  Floats sum[kVecs], change[kVecs];
#pragma GCC unroll 8
  for (int n = 0; n < kVecs; ++n) sum[n] = splat(0.0f);
  for (int64_t c = 0; c < width; ++c) {
    const Floats x = splat(k[c]);
#pragma GCC unroll 8
    for (int n = 0; n < kVecs; ++n) sum[n] = fused(x, load(memory + c * width + n * kLanes), sum[n]);
  }
#pragma GCC unroll 8
  for (int n = 0; n < kVecs; ++n) {
    change[n] = splat(beta) * (load(v + n * kLanes) - splat(left) * sum[n]);
    sum[n] = splat(0.0f);
  }
  for (int64_t c = 0; c < width; ++c) {
    const Floats x = splat(k[c]), y = splat(q[c]);
#pragma GCC unroll 8
    for (int n = 0; n < kVecs; ++n) {
      float* at = memory + c * width + n * kLanes;
      const Floats held = fused(x, change[n], splat(left) * load(at));
      store(at, held);
      sum[n] = fused(y, held, sum[n]);
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < kVecs; ++n) store(out + n * kLanes, sum[n]);
}

inline void remember_token(const Head& h, int64_t t) {
  const float *q = h.q + t * h.key_stride, *k = h.k + t * h.key_stride, *v = h.v + t * h.value_stride;
  const float beta = h.beta[t * h.stride], left = power(h.fade[t * h.stride] * kLog2E);
  float* out = h.out + t * h.value_stride;
  int64_t at = 0;
  for (; at + kRow * kLanes <= h.width; at += kRow * kLanes) {
    remember_columns<kRow>(q, k, v + at, beta, left, h.width, h.memory + at, out + at);
  }
  for (; at < h.width; at += kLanes) remember_columns<1>(q, k, v + at, beta, left, h.width, h.memory + at, out + at);
}

// Tokens first .. first + n of a head, at most kChunk.
inline void remember_chunk(const Head& h, int64_t first, int64_t n, float* space) {
  const int64_t S = h.width, lanes = (n + kLanes - 1) / kLanes * kLanes;
  float *turned = space, *change = turned + S * kChunk, *alike = change + kChunk * S, *seen = alike + kChunk * kChunk;
  float *g = seen + kChunk * kChunk, *since = g + kChunk, *until = since + kChunk, *ones = until + kChunk;
  float* left = ones + kChunk;
  const Left q = {h.q + first * h.key_stride, h.key_stride, 1}, k = {h.k + first * h.key_stride, h.key_stride, 1};
  const float *v = h.v + first * h.value_stride, *beta = h.beta + first * h.stride;
  float* out = h.out + first * h.value_stride;

  float sum = 0;
  for (int64_t i = 0; i < lanes; ++i) g[i] = i < n ? (sum += h.fade[(first + i) * h.stride] * kLog2E) : sum;
  for (int64_t i = 0; i < lanes; i += kLanes) {
    store(since + i, exp2_of(load(g + i)));
    store(until + i, exp2_of(splat(sum) - load(g + i)));
    store(ones + i, splat(1.0f));
  }
  for (int64_t c = 0; c < S; ++c) left[c] = since[n - 1];
  for (int64_t j = 0; j < lanes; ++j) {
    for (int64_t c = 0; c < S; ++c) turned[c * kChunk + j] = j < n ? k.at[j * k.row + c] : 0.0f;
  }

  multiply(k, n, S, h.memory, S, S, nullptr, change, S);
  multiply(q, n, S, h.memory, S, S, nullptr, out, h.value_stride);
  for (int64_t i = 0; i < n; i += kTall) {
    const int64_t rows = i + kTall <= n ? kTall : n - i, columns = (i + rows + kLanes - 1) / kLanes * kLanes;
    multiply({k.at + i * k.row, k.row, 1}, rows, S, turned, kChunk, columns, nullptr, alike + i * kChunk, kChunk);
    multiply({q.at + i * q.row, q.row, 1}, rows, S, turned, kChunk, columns, nullptr, seen + i * kChunk, kChunk);
  }
  for (int64_t i = 0; i < n; ++i) {
    const Floats less = splat(-beta[i * h.stride]), factor = splat(-since[i]), more = splat(beta[i * h.stride]);
    for (int64_t j = 0; j <= i; j += kLanes) {
      const Floats kept = exp2_of(splat(g[i]) - load(g + j));
      store(alike + i * kChunk + j, load(alike + i * kChunk + j) * kept * less);
      store(seen + i * kChunk + j, load(seen + i * kChunk + j) * kept);
    }
    for (int64_t j = i + 1; j % kTall; ++j) seen[i * kChunk + j] = 0;  // what no token of a row sees
    for (int64_t c = 0; c < S; c += kLanes) {
      float* at = change + i * S + c;
      store(at, more * fused(factor, load(at), load(v + i * h.value_stride + c)));
    }
  }

  for (int64_t i = 0; i < n; i += kTall) {
    const int64_t rows = i + kTall <= n ? kTall : n - i;
    multiply({alike + i * kChunk, kChunk, 1}, rows, i, change, S, S, ones, change + i * S, S);
    for (int64_t row = i + 1; row < i + rows; ++row) {
      multiply({alike + row * kChunk + i, kChunk, 1}, 1, row - i, change + i * S, S, S, ones, change + row * S, S);
    }
    const int64_t width = h.value_stride;
    multiply({seen + i * kChunk, kChunk, 1}, rows, i + rows, change, S, S, since + i, out + i * width, width);
  }
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t c = 0; c < S; c += kLanes) store(change + j * S + c, load(change + j * S + c) * splat(until[j]));
  }
  multiply({turned, kChunk, 1}, S, n, change, S, S, left, h.memory, S);
}

inline void remember(const Head& h, float* space) {
  if (h.tokens < kFew) {
    for (int64_t t = 0; t < h.tokens; ++t) remember_token(h, t);
    return;
  }
  for (int64_t t = 0; t < h.tokens; t += kChunk) {
    remember_chunk(h, t, h.tokens - t < kChunk ? h.tokens - t : kChunk, space);
  }
}
