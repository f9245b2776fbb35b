// Scores of int8 keys, each block of kBlock channels with a scale: queries are rounded in the same blocks, products of
// a block are added up in integers, exactly, and blocks one after the other in floats. So a score has one order whether
// a lane holds a position (few queries) or a query (many), as in attention_few.h and attention_many.h. Included by
// attention_kernel.h.
//
// An instruction set brings Ints, vectors of kLanes int32, and
//
//   Keys    4 channels of a key in each lane, made by `keyed`
//   dot4    adds their products with 4 channels of queries
//   kShift  what `keyed` adds to a channel

#include "quantize_block.h"

constexpr int64_t kWords = kBlock / 4;  // of a block

constexpr int64_t words_of(int64_t width) { return (width + 3) / 4; }

// Rounded queries side by side: `step` rows.
struct Rounded {
  int64_t step;
  int32_t* words;   // (words of C, step), 4 channels each
  float* scales;    // (blocks, step), times the scale of scores
  int32_t* starts;  // (blocks, step), which takes back what kShift adds to a block's products

  // Those of rows panel .. panel + step - 1, in what `attend` keeps for queries.
  Rounded(float* q, int64_t width, int64_t panel, int64_t step) : step(step) {
    words = reinterpret_cast<int32_t*>(q) + panel * query_space(width);
    scales = reinterpret_cast<float*>(words + words_of(width) * step);
    starts = words + (words_of(width) + blocks_of(width)) * step;
  }

  // Rounds a row of the block to place i; one that there is not becomes zeros.
  void put(const Block& b, int64_t row, int64_t i) const {
    const float* from = b.q + row / b.group * b.token_stride + row % b.group * b.width;
    for (int64_t n = 0; n < blocks_of(b.width); ++n) {
      const int64_t first = n * kBlock, count = b.width - first < kBlock ? b.width - first : kBlock;
      float x[kBlock] = {};
      if (row < b.rows()) std::memcpy(x, from + first, count * sizeof(float));
      int8_t rounded[kBlock];
      scales[n * step + i] = quantize_block<kBlock>(x, rounded) * b.scale;
      int32_t sum = 0;
      for (int64_t c = 0; c < kBlock; ++c) sum += rounded[c];
      starts[n * step + i] = -kShift * sum;
      for (int64_t w = 0; 4 * w < count; ++w) std::memcpy(words + (n * kWords + w) * step + i, rounded + 4 * w, 4);
    }
  }
};

inline void round_few(const Block& b, float* q) {
  with_few(b.rows(), [&](auto n) {
    const Rounded rounded(q, b.width, 0, decltype(n)::value);
    for (int64_t row = 0; row < rounded.step; ++row) rounded.put(b, row, row);
  });
}

// In panels of kPanel vectors of rows, of which the last may have one.
inline void round_many(const Block& b, int64_t lanes, float* q) {
  for (int64_t panel = 0; panel < lanes; panel += kPanel * kLanes) {
    const Rounded rounded(q, b.width, panel, lanes - panel < kPanel * kLanes ? kLanes : kPanel * kLanes);
    for (int64_t i = 0; i < rounded.step; ++i) rounded.put(b, panel + i, i);
  }
}

// Both planes of scales of the positions from `place` on, which are looked at next.
inline void fetch_scales(const Block& b, int64_t place, int64_t count) {
  const int64_t first = place * blocks_of(b.width), end = first + count * blocks_of(b.width);
  const uint16_t* const planes[] = {b.k_scales, b.v_scales};
  for (const uint16_t* scales : planes) {
    Ahead{reinterpret_cast<const uint8_t*>(scales + first), reinterpret_cast<const uint8_t*>(scales + end)}.fetch(
        INT64_MAX);
  }
}

// (count, blocks) halves as floats. Writes up to a vector more.
inline void widen_scales(const uint16_t* from, int64_t blocks, int64_t count, float* to) {
  widen<KvType::f16>(reinterpret_cast<const uint8_t*>(from), 0, 1, count * blocks, to);
}

// The key scales of a tile's positions as (blocks, kTile), where those that are not looked at have a neighbour's.
inline void spread_scales(const uint16_t* from, int64_t blocks, int64_t lead, int64_t count, float* space, float* to) {
  widen_scales(from + lead * blocks, blocks, count - lead, space);
  for (int64_t n = 0; n < blocks; ++n, to += kTile) {
    for (int64_t s = 0; s < lead; ++s) to[s] = space[n];
    for (int64_t s = lead; s < count; ++s) to[s] = space[(s - lead) * blocks + n];
    for (int64_t s = count; s < kTile; ++s) to[s] = to[count - 1];
  }
}

// As `widen`, of int8 values with their scales.
inline void widen_int8(const uint8_t* from, int64_t pitch, int64_t count, int64_t width, const float* scales,
                       int64_t blocks, float* to) {
  widen<KvType::q8>(from, pitch, count, width, to);
  for (int64_t s = 0; s < count; ++s, to += padded(width), scales += blocks) {
    for (int64_t c = 0; c < width; c += kLanes) store(to + c, load(to + c) * splat(scales[c / kBlock]));
  }
}

// As `score_few_strips`.
template <int kRows, int kStrips>
inline void score_int8_strips(const uint32_t* words, int64_t strip, const Rounded& q, int64_t width,
                              const float* key_scales, float* scores, Ahead& values) {
  for (int64_t n = 0; n < blocks_of(width); ++n) {
    const int64_t first = n * kWords, end = first + kWords < words_of(width) ? first + kWords : words_of(width);
    Ints sum[kRows][kStrips];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int s = 0; s < kStrips; ++s) sum[r][s] = splat_int(q.starts[n * kRows + r]);
    }
    for (int64_t w = first; w < end; ++w) {
      if (w % 2 == 0) values.fetch(kStrips * kLanes * 8 / 64);
#pragma GCC unroll 4
      for (int s = 0; s < kStrips; ++s) {
        const Keys key = keyed(load_ints(words + s * strip + w * kLanes));
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sum[r][s] = dot4(key, splat_int(q.words[w * kRows + r]), sum[r][s]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int s = 0; s < kStrips; ++s) {
        float* score = scores + r * kTile + s * kLanes;
        const Floats scale = load(key_scales + n * kTile + s * kLanes) * splat(q.scales[n * kRows + r]);
        store(score, fused(to_floats(sum[r][s]), scale, n ? load(score) : splat(0.0f)));
      }
    }
  }
}

// As `score_few`.
inline void score_few_int8(const Block& b, const uint8_t* keys, int64_t lead, int64_t count, float* q, float* space,
                           float* edges, const float* key_scales, float* scores, Ahead values) {
  auto* words = reinterpret_cast<uint32_t*>(space);
  auto* edge = reinterpret_cast<uint8_t*>(edges);
  with_few(b.rows(), [&](auto n) {
    constexpr int kRows = decltype(n)::value, kStrips = few_strips(kRows), kStep = kStrips * kLanes;
    const int64_t strip = words_of(b.width) * kLanes + kLanes * kLanes;
    const Rounded rounded(q, b.width, 0, kRows);
    for (int64_t s = lead / kStep * kStep; s < count; s += kStep) {
      transpose_strips<kStrips>(keys, b.width, s, lead, count, words, strip, edge);
      score_int8_strips<kRows, kStrips>(words, strip, rounded, b.width, key_scales + s, scores + s, values);
    }
  });
}

// As `score_strip`.
template <int kVecs>
inline void score_int8_strip(const uint8_t* const* key, const Rounded& q, int64_t width, const float* key_scales,
                             float* scores, int64_t stride) {
  constexpr int64_t kStep = kVecs * kLanes;
  for (int64_t n = 0; n < blocks_of(width); ++n) {
    const int64_t first = n * kWords, end = first + kWords < words_of(width) ? first + kWords : words_of(width);
    Ints sum[kStrip][kVecs];
#pragma GCC unroll 8
    for (int s = 0; s < kStrip; ++s) {
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) sum[s][v] = load_ints(q.starts + n * kStep + v * kLanes);
    }
    for (int64_t w = first; w < end; ++w) {
      Ints x[kVecs];
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) x[v] = load_ints(q.words + w * kStep + v * kLanes);
#pragma GCC unroll 8
      for (int s = 0; s < kStrip; ++s) {
        int32_t word;
        std::memcpy(&word, key[s] + 4 * w, 4);
        const Keys k = keyed(splat_int(word));
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) sum[s][v] = dot4(k, x[v], sum[s][v]);
      }
    }
#pragma GCC unroll 8
    for (int s = 0; s < kStrip; ++s) {
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) {
        float* score = scores + s * stride + v * kLanes;
        const Floats scale = splat(key_scales[n * kTile + s]) * load(q.scales + n * kStep + v * kLanes);
        store(score, fused(to_floats(sum[s][v]), scale, n ? load(score) : splat(0.0f)));
      }
    }
  }
}

// As `score_many`. Keys whose last word is not whole are copied to `space`.
inline void score_many_int8(const Block& b, const uint8_t* keys, int64_t lead, int64_t count, float* q, int64_t lanes,
                            float* space, const float* key_scales, float* scores, Ahead values) {
  int64_t pitch = b.width;
  if (b.width % 4) {
    pitch = 4 * words_of(b.width);
    auto* whole = reinterpret_cast<uint8_t*>(space);
    for (int64_t s = lead; s < count; ++s) std::memcpy(whole + s * pitch, keys + s * b.width, b.width);
    keys = whole;
  }
  in_strips(keys, pitch, lead, count, lanes, values, [&](const uint8_t* const* key, int64_t s, int64_t row, auto vecs) {
    constexpr int kVecs = decltype(vecs)::value;
    const Rounded panel(q, b.width, row, kVecs * kLanes);
    score_int8_strip<kVecs>(key, panel, b.width, key_scales + s, scores + s * lanes + row, lanes);
  });
}
