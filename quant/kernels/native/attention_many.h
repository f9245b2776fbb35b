// Scores of many queries, and their softmax, where a lane is a query: scores are kept as (position, row), made from
// keys broadcast one float at a time against transposed queries. f32 keys are read where they lie in the cache, others
// are widened once for all queries. Included by attention_kernel.h.

// scores[s][row] = key s . query row, for kStrip positions and kVecs vectors of rows.
template <int kVecs>
inline void score_strip(const float* const* key, const float* q, int64_t width, float* scores, int64_t stride) {
  Floats sum[kStrip][kVecs];
#pragma GCC unroll 8
  for (int s = 0; s < kStrip; ++s) {
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) sum[s][v] = splat(0.0f);
  }
  for (int64_t c = 0; c < width; ++c) {
    Floats x[kVecs];
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) x[v] = load(q + (c * kVecs + v) * kLanes);
#pragma GCC unroll 8
    for (int s = 0; s < kStrip; ++s) {
      const Floats k = splat(key[s][c]);
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) sum[s][v] = fused(k, x[v], sum[s][v]);
    }
  }
#pragma GCC unroll 8
  for (int s = 0; s < kStrip; ++s) {
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) store(scores + s * stride + v * kLanes, sum[s][v]);
  }
}

// Queries times scale, as panels of kPanel vectors of rows (the last may have one): (panel, C, rows of the panel).
inline void transpose_queries(const Block& b, int64_t lanes, float* q) {
  for (int64_t row = 0; row < lanes; ++row) {
    const int64_t panel = row / (kPanel * kLanes) * (kPanel * kLanes);
    const int64_t step = lanes - panel < kPanel * kLanes ? kLanes : kPanel * kLanes;
    const float* from = b.q + row / b.group * b.token_stride + row % b.group * b.width;
    float* to = q + panel * b.width + (row - panel);
    for (int64_t c = 0; c < b.width; ++c) to[c * step] = row < b.rows() ? from[c] * b.scale : 0.0f;
  }
}

// Calls score(keys of a strip, its first position, a panel's first row, its vectors) for a tile's positions lead .. count
// - 1 in whole strips, whose other positions have a neighbour's key, and all rows. Keys lie `pitch` apart.
template <class Key, class Score>
inline void in_strips(const Key* keys, int64_t pitch, int64_t lead, int64_t count, int64_t lanes, Ahead values,
                      const Score& score) {
  const int64_t lines = (values.lines() * kStrip + count - lead - 1) / (count - lead);
  for (int64_t s = lead / kStrip * kStrip; s < count; s += kStrip) {
    values.fetch(lines);
    const Key* key[kStrip];
    for (int64_t i = 0; i < kStrip; ++i) {
      const int64_t at = s + i < lead ? lead : s + i < count ? s + i : count - 1;
      key[i] = keys + at * pitch;
    }
    int64_t row = 0;
    for (; row + kLanes < lanes; row += kPanel * kLanes) score(key, s, row, std::integral_constant<int, kPanel>());
    if (row < lanes) score(key, s, row, std::integral_constant<int, 1>());
  }
}

// Scores of a tile's positions, as `in_strips` takes them. Leaves keys of two bytes in `wide`, as f32.
inline void score_many(const Block& b, const uint8_t* narrow, int64_t lead, int64_t count, const float* q,
                       int64_t lanes, float* wide, float* scores, Ahead values) {
  const float* keys = reinterpret_cast<const float*>(narrow);
  int64_t pitch = b.width;
  if (b.type != KvType::f32) {
    widen(narrow, b.width, b.type, count, b.width, wide);
    keys = wide, pitch = padded(b.width);
  }
  in_strips(keys, pitch, lead, count, lanes, values, [&](const float* const* key, int64_t s, int64_t row, auto vecs) {
    score_strip<decltype(vecs)::value>(key, q + row * b.width, b.width, scores + s * lanes + row, lanes);
  });
}

// What `changed` does, to scores of positions from .. filled - 1.
inline void change_many(const Block& b, int64_t at, int64_t from, int64_t filled, int64_t lanes, const float* slopes,
                          const float* positions, float* scores) {
  for (int64_t s = from; s < filled; ++s) {
    const Floats position = splat(static_cast<float>(at + s));
    for (int64_t row = 0; row < lanes; row += kLanes) {
      float* score = scores + s * lanes + row;
      store(score, changed(b, load(score), position, load(positions + row), load(slopes + row)));
    }
  }
}

// Scores to weights, in place, for one vector of rows; adds to its top and total and says how earlier sums shrink.
inline void soften_many(float* scores, int64_t lanes, int64_t count, float* top, float* total, float* shrink) {
  Floats most[4] = {load(top), load(top), load(top), load(top)};
  for (int64_t s = 0; s < count; s += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) most[i] = maximum(load(scores + (s + i) * lanes), most[i]);
  }
  const Floats highest = maximum(maximum(most[0], most[1]), maximum(most[2], most[3]));
  const Floats less = exp2_of(load(top) - highest);
  Floats sum[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  for (int64_t s = 0; s < count; s += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Floats weight = exp2_of(load(scores + (s + i) * lanes) - highest);
      store(scores + (s + i) * lanes, weight);
      sum[i] = sum[i] + weight;
    }
  }
  store(top, highest);
  store(shrink, less);
  store(total, fused(load(total), less, (sum[0] + sum[1]) + (sum[2] + sum[3])));
}
