// Scores of few queries, where a lane is a position: kLanes keys at a time are transposed, so that each is read and
// widened once for all queries, and no lane is idle. Every sum has the order that it has among many queries. Included
// by attention_kernel.h inside each instruction set's namespace and target, which bring `transpose_words`: kLanes words
// from each of kLanes keys, word i of them all to line i; and `halves_of`: a line's first channels, and its second.

constexpr int kMostFew = kLanes / 2;  // with more queries their lanes are full enough

// As many keys as keep the units for products busy: about 8 sums in the making.
constexpr int few_strips(int rows) { return rows * kLanes >= 128 ? 2 : rows * kLanes >= 64 ? 4 : rows >= 4 ? 2 : 4; }

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
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int s = 0; s < kStrips; ++s) sum[r][s] = splat(0.0f);
  }
  const auto add = [&](const Floats* key, int64_t c) {
#pragma GCC unroll 8
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
    values.fetch(kStrips);
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
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int s = 0; s < kStrips; ++s) store(scores + r * kTile + s * kLanes, sum[r][s]);
  }
}

// Scores (row, position) of a tile's positions lead .. count - 1, and some of others, which have a neighbour's.
template <int kRows, KvType kType>
inline void score_few_tile(const Block& b, const uint8_t* keys, int64_t lead, int64_t count, const float* q,
                           uint32_t* words, uint8_t* edge, float* scores, Ahead values) {
  constexpr int kStrips = few_strips(kRows), kStep = kStrips * kLanes;
  const int64_t bytes = b.width * (kType == KvType::f32 ? 4 : 2), strip = (bytes + 3) / 4 * kLanes + kLanes * kLanes;
  for (int64_t s = lead / kStep * kStep; s < count; s += kStep) {
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
    score_few_strips<kRows, kStrips, kType>(words, strip, q, b.width, scores + s, values);
  }
}

// Queries times scale, as (C, kRows) with zeros for rows that there are not.
template <int kRows>
inline void interleave_queries(const Block& b, float* q) {
  for (int64_t row = 0; row < kRows; ++row) {
    const float* from = b.q + row / b.group * b.token_stride + row % b.group * b.width;
    for (int64_t c = 0; c < b.width; ++c) q[c * kRows + row] = row < b.rows() ? from[c] * b.scale : 0.0f;
  }
}

// Calls f with the number of rows, made even to a power of 2, as a constant.
template <typename F>
inline void with_few(int64_t rows, const F& f) {
  if (rows == 1) return f(std::integral_constant<int, 1>());
  if constexpr (kMostFew > 2) {
    if (rows > 2) {
      if constexpr (kMostFew > 4) {
        if (rows > 4) return f(std::integral_constant<int, 8>());
      }
      return f(std::integral_constant<int, 4>());
    }
  }
  f(std::integral_constant<int, 2>());
}

inline void score_few(const Block& b, const uint8_t* keys, int64_t lead, int64_t count, const float* q, float* words,
                      float* edge, float* scores, Ahead values) {
  with_few(b.rows(), [&](auto n) {
    constexpr int kRows = decltype(n)::value;
    const auto score = b.type == KvType::f32   ? score_few_tile<kRows, KvType::f32>
                       : b.type == KvType::f16 ? score_few_tile<kRows, KvType::f16>
                                               : score_few_tile<kRows, KvType::bf16>;
    score(b, keys, lead, count, q, reinterpret_cast<uint32_t*>(words), reinterpret_cast<uint8_t*>(edge), scores, values);
  });
}

// As `change_scores`, of scores (row, position).
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

// As `soften`, for all rows of scores (row, position) up to a multiple of kLanes.
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
