// Scores of few queries, and their softmax, where a lane is a position: scores are kept as (row, position). kLanes keys
// at a time are transposed, so that no lane is idle and each key is widened once, in registers. Every sum has the order
// that it has in attention_many.h. Included by attention_kernel.h. An instruction set brings kMostFew, the most queries
// that are few; `transpose_words`: kLanes words of each of kLanes keys, word i of all of them to line i; `halves_of`:
// both channels of a line of words; `largest`: of a vector.

// As many vectors of keys as keep the units for products busy, and their sums in registers.
constexpr int few_strips(int rows) {
  const int strips = 2 * kStrip / rows;
  return strips > 4 ? 4 : strips < 1 ? 1 : strips;
}

// Channels 2 i and 2 i + 1, or i of f32, of kLanes keys side by side, for every i. The keys are `bytes` long.
inline void transpose_keys(const uint8_t* keys, int64_t bytes, uint32_t* to) {
  constexpr int64_t kBlock = 4 * kLanes;
  int64_t at = 0;
  for (; at + kBlock <= bytes; at += kBlock) transpose_words(keys + at, bytes, to + at / 4 * kLanes);
  if (at == bytes) return;
  if (bytes > kBlock && bytes % 4 == 0) {
    return transpose_words(keys + bytes - kBlock, bytes, to + (bytes - kBlock) / 4 * kLanes);
  }
  uint8_t rest[kLanes * kBlock] = {};  // loading a whole block might read past the cache's end
  for (int i = 0; i < kLanes; ++i) std::memcpy(rest + i * kBlock, keys + i * bytes + at, bytes - at);
  transpose_words(rest, kBlock, to + at / 4 * kLanes);
}

// scores[row][position] of kStrips * kLanes positions, of queries (C, kRows).
template <int kRows, int kStrips, KvType kType>
inline void score_few_strips(const uint32_t* words, int64_t strip, const float* q, int64_t width, float* scores,
                             Ahead& values) {
  Floats sum[kRows][kStrips];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int s = 0; s < kStrips; ++s) sum[r][s] = splat(0.0f);
  }
  const auto add = [&](const Floats* key, int64_t c) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Floats x = splat(q[c * kRows + r]);
#pragma GCC unroll 4
      for (int s = 0; s < kStrips; ++s) sum[r][s] = fused(key[s], x, sum[r][s]);
    }
  };
  constexpr int kEach = kType == KvType::f32 ? 1 : 2;
  int64_t c = 0;
  for (; c + kEach <= width; c += kEach, words += kLanes) {
    Floats key[2][kStrips];
    if (c % 4 == 0) values.fetch(kStrips * kLanes * 4 * bytes_of(kType) / 64);
#pragma GCC unroll 4
    for (int s = 0; s < kStrips; ++s) {
      if constexpr (kType == KvType::f32) {
        key[0][s] = load(reinterpret_cast<const float*>(words + s * strip));
      } else {
        halves_of<kType>(words + s * strip, key[0][s], key[1][s]);
      }
    }
    add(key[0], c);
    if constexpr (kEach == 2) add(key[1], c + 1);
  }
  if constexpr (kEach == 2) {
    if (c < width) {
      Floats key[kStrips], none;
#pragma GCC unroll 4
      for (int s = 0; s < kStrips; ++s) halves_of<kType>(words + s * strip, key[s], none);
      add(key, c);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int s = 0; s < kStrips; ++s) store(scores + r * kTile + s * kLanes, sum[r][s]);
  }
}

// kStrips times kLanes keys from position s of a tile on, transposed to `words`, `strip` words apart. Those outside
// lead .. count - 1 have a neighbour's.
template <int kStrips>
inline void transpose_strips(const uint8_t* keys, int64_t bytes, int64_t s, int64_t lead, int64_t count,
                             uint32_t* words, int64_t strip, uint8_t* edge) {
  for (int64_t i = 0; i < kStrips; ++i) {
    const int64_t first = s + i * kLanes;
    const uint8_t* from = keys + first * bytes;
    if (first < lead || first + kLanes > count) {
      for (int64_t j = 0; j < kLanes; ++j) {
        const int64_t at = first + j < lead ? lead : first + j < count ? first + j : count - 1;
        std::memcpy(edge + j * bytes, keys + at * bytes, bytes);
      }
      from = edge;
    }
    transpose_keys(from, bytes, words + i * strip);
  }
}

template <int kRows, KvType kType>
inline void score_few_tile(const Block& b, const uint8_t* keys, int64_t lead, int64_t count, const float* q,
                           uint32_t* words, uint8_t* edge, float* scores, Ahead values) {
  constexpr int kStrips = few_strips(kRows), kStep = kStrips * kLanes;
  const int64_t bytes = b.width * bytes_of(kType), strip = (bytes + 3) / 4 * kLanes + kLanes * kLanes;
  for (int64_t s = lead / kStep * kStep; s < count; s += kStep) {
    transpose_strips<kStrips>(keys, bytes, s, lead, count, words, strip, edge);
    score_few_strips<kRows, kStrips, kType>(words, strip, q, b.width, scores + s, values);
  }
}

// Calls f with the number of rows, made even to a power of 2, as a constant.
template <int kRows = 1, typename F>
inline void with_few(int64_t rows, const F& f) {
  if constexpr (kRows < kMostFew) {
    if (rows > kRows) return with_few<2 * kRows>(rows, f);
  }
  f(std::integral_constant<int, kRows>());
}

// Queries times scale, as (C, rows) with zeros for the rows that `with_few` adds.
inline void interleave_queries(const Block& b, float* q) {
  with_few(b.rows(), [&](auto n) {
    constexpr int kRows = decltype(n)::value;
    for (int64_t row = 0; row < kRows; ++row) {
      const float* from = b.q + row / b.group * b.token_stride + row % b.group * b.width;
      for (int64_t c = 0; c < b.width; ++c) q[c * kRows + row] = row < b.rows() ? from[c] * b.scale : 0.0f;
    }
  });
}

// Scores of a tile's positions lead .. count - 1, and some of others, which have a neighbour's. Keys at the tile's ends
// are copied to `edges`.
inline void score_few(const Block& b, const uint8_t* keys, int64_t lead, int64_t count, const float* q, float* space,
                      float* edges, float* scores, Ahead values) {
  auto* words = reinterpret_cast<uint32_t*>(space);
  auto* edge = reinterpret_cast<uint8_t*>(edges);
  with_few(b.rows(), [&](auto n) {
    constexpr int kRows = decltype(n)::value;
    const auto score = b.type == KvType::f32   ? score_few_tile<kRows, KvType::f32>
                       : b.type == KvType::f16 ? score_few_tile<kRows, KvType::f16>
                                               : score_few_tile<kRows, KvType::bf16>;
    score(b, keys, lead, count, q, words, edge, scores, values);
  });
}

// What `changed` does, to scores of positions from .. filled - 1.
inline void change_few(const Block& b, int64_t at, int64_t from, int64_t filled, const float* slopes,
                       const float* positions, float* scores) {
  float place[kLanes];
  for (int64_t s = from; s < filled; s += kLanes) {
    for (int i = 0; i < kLanes; ++i) place[i] = static_cast<float>(at + s + i);
    for (int64_t row = 0; row < b.rows(); ++row) {
      float* score = scores + row * kTile + s;
      store(score, changed(b, load(score), load(place), splat(positions[row]), splat(slopes[row])));
    }
  }
}

// As `soften_many`, for all rows. Position s is added to the total's quarter s % 4, as there.
inline void soften_few(float* scores, int64_t rows, int64_t filled, float* top, float* total, float* shrink) {
  using Four = float __attribute__((vector_size(16), aligned(4)));
  float most[kLanes], sums[kLanes] = {};
  store(most, load(top));
  for (int64_t row = 0; row < rows; ++row) {
    Floats highest = splat(top[row]);
    for (int64_t s = 0; s < filled; s += kLanes) highest = maximum(load(scores + row * kTile + s), highest);
    most[row] = largest(highest);
  }
  for (int64_t row = 0; row < rows; ++row) {
    for (float* score = scores + row * kTile; score < scores + row * kTile + filled; score += kLanes) {
      store(score, exp2_of(load(score) - splat(most[row])));
    }
  }
  for (int64_t row = 0; row < rows; row += 4) {  // rows that there are not have room, and their sums go nowhere
    Four sum[4] = {};
    for (int64_t s = 0; s < filled; s += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sum[i] += *reinterpret_cast<const Four*>(scores + (row + i) * kTile + s);
    }
    for (int i = 0; i < 4; ++i) sums[row + i] = (sum[i][0] + sum[i][1]) + (sum[i][2] + sum[i][3]);
  }
  const Floats highest = load(most), less = exp2_of(load(top) - highest);
  store(top, highest);
  store(shrink, less);
  store(total, fused(load(total), less, load(sums)));
}
