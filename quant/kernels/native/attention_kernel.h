// One block's attention, a tile of positions at a time with a running softmax. Included inside each instruction set's
// namespace and target, which bring Floats, kLanes, kStrip and the few operations on them.
//
// A lane is a query row in the scores and a column in the values, so that nothing is ever added across lanes: scores
// are kept as (position, row), made from keys broadcast one float at a time against transposed queries, and weights
// broadcast one at a time against values. f32 keys and values are read where they lie in the cache.
// Source: online softmax (1805.02867), FlashAttention (2205.14135).

#include "exp2.h"

using Ints = int32_t __attribute__((vector_size(4 * kLanes)));

constexpr int kPanel = 2;  // vectors of rows, or of columns, that one pass keeps in registers
constexpr float kLog2E = 1.44269504088896341f;

// Memory that the next step reads, fetched a few lines at a time while this one computes: keys are read in an order
// that CPUs do not foresee, and without this a thread waits for memory three quarters of its time.
struct Ahead {
  const uint8_t *at, *end;
  int64_t lines() const { return (end - at + 63) / 64; }
  void fetch(int64_t most) {
    for (; most > 0 && at < end; --most, at += 64) __builtin_prefetch(at);
  }
};

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

inline Floats load_as(const uint8_t* p, KvType type) {
  if (type == KvType::f32) return load(reinterpret_cast<const float*>(p));
  const auto* halves = reinterpret_cast<const uint16_t*>(p);
  return type == KvType::f16 ? load_f16(halves) : load_bf16(halves);
}

// mixed = mixed * shrink + weights . values, for kRows rows and kVecs vectors of columns. Values, of kType, lie `pitch`
// bytes apart. Weights of a position lie kStep floats apart, and those of a row `stride`.
template <int kRows, int kVecs, KvType kType, int64_t kStep>
inline void mix_columns(const float* weights, int64_t stride, int64_t count, const uint8_t* values, int64_t pitch,
                        const float* shrink, float* mixed, int64_t mixed_pitch, Ahead& ahead) {
  Floats sum[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) sum[r][v] = load(mixed + r * mixed_pitch + v * kLanes) * splat(shrink[r]);
  }
  constexpr int64_t kBytes = kType == KvType::f32 ? 4 : 2;
  for (int64_t s = 0; s < count; ++s) {
    Floats x[kVecs];
    ahead.fetch(kVecs * kLanes * kBytes / 64 ? kVecs * kLanes * kBytes / 64 : 1);
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) x[v] = load_as(values + s * pitch + v * kLanes * kBytes, kType);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Floats w = splat(weights[s * stride + r * kStep]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) sum[r][v] = fused(w, x[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) store(mixed + r * mixed_pitch + v * kLanes, sum[r][v]);
  }
}

// Rows from `row` on, in groups of kRows and then of fewer.
template <int kRows, KvType kType, int64_t kStep>
inline void mix_rows(int64_t row, int64_t rows, const float* weights, int64_t stride, int64_t count,
                     const uint8_t* values, int64_t pitch, const float* shrink, float* mixed, int64_t mixed_pitch,
                     int64_t width, Ahead& ahead) {
  constexpr int64_t kBytes = kType == KvType::f32 ? 4 : 2;
  constexpr int kVecs = kRows < 4 ? 2 * kPanel : kPanel;  // about 8 sums in the making
  for (; row + kRows <= rows; row += kRows) {
    const float* w = weights + row * kStep;
    float* to = mixed + row * mixed_pitch;
    int64_t c = 0;
    const auto columns = [&](auto vecs) {
      constexpr int kOf = decltype(vecs)::value;
      for (; c + (kOf - 1) * kLanes < width; c += kOf * kLanes) {
        mix_columns<kRows, kOf, kType, kStep>(w, stride, count, values + c * kBytes, pitch, shrink + row, to + c,
                                              mixed_pitch, ahead);
      }
    };
    columns(std::integral_constant<int, kVecs>());
    if constexpr (kVecs > kPanel) columns(std::integral_constant<int, kPanel>());
    columns(std::integral_constant<int, 1>());
  }
  if constexpr (kRows > 1) {
    mix_rows<kRows / 2, kType, kStep>(row, rows, weights, stride, count, values, pitch, shrink, mixed, mixed_pitch,
                                      width, ahead);
  }
}

// `mix_rows` for every type.
template <int64_t kStep>
inline auto mixer(KvType type) {
  return type == KvType::f32   ? mix_rows<kStrip, KvType::f32, kStep>
         : type == KvType::f16 ? mix_rows<kStrip, KvType::f16, kStep>
                               : mix_rows<kStrip, KvType::bf16, kStep>;
}

// The first `width` channels of `count` keys or values as f32, `padded(width)` floats apart with zeros at the end of
// each. They lie `pitch` channels apart.
inline void widen(const uint8_t* from, int64_t pitch, KvType type, int64_t count, int64_t width, float* to) {
  const int64_t bytes = type == KvType::f32 ? 4 : 2, whole = width / kLanes * kLanes;
  for (int64_t s = 0; s < count; ++s, from += pitch * bytes, to += padded(width)) {
    for (int64_t c = 0; c < whole; c += kLanes) store(to + c, load_as(from + c * bytes, type));
    if (whole < width) {
      uint8_t rest[4 * kLanes] = {};  // loading a whole vector might read past the cache's end
      std::memcpy(rest, from + whole * bytes, (width - whole) * bytes);
      store(to + whole, load_as(rest, type));
    }
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

// Scores of a tile's positions lead .. count - 1, in whole strips: other positions of these have a neighbour's.
inline void score_tile(const Block& b, const float* keys, int64_t pitch, int64_t lead, int64_t count, const float* q,
                       int64_t lanes, float* scores, Ahead values) {
  const int64_t lines = (values.lines() * kStrip + count - lead - 1) / (count - lead);
  for (int64_t s = lead / kStrip * kStrip; s < count; s += kStrip) {
    values.fetch(lines);
    const float* key[kStrip];
    for (int64_t i = 0; i < kStrip; ++i) {
      const int64_t at = s + i < lead ? lead : s + i < count ? s + i : count - 1;
      key[i] = keys + at * pitch;
    }
    int64_t row = 0;
    for (; row + kLanes < lanes; row += kPanel * kLanes) {
      score_strip<kPanel>(key, q + row * b.width, b.width, scores + s * lanes + row, lanes);
    }
    if (row < lanes) score_strip<1>(key, q + row * b.width, b.width, scores + s * lanes + row, lanes);
  }
}

// c tanh(x / c), in units of ln 2 as scores are: with t = e^(-2 |x| / c) it is c (1 - t) / (1 + t), and x's sign.
inline Floats capped(Floats x, float cap) {
  const Floats size = maximum(x, -x);
  const Floats t = exp2_of(size * splat(-2.0f * kLog2E / cap));
  const Floats y = splat(cap) * (splat(1.0f) - t) / (splat(1.0f) + t);
  return x < 0.0f ? -y : y;
}

// The family's own changes of scores, between keys and queries at some positions.
inline Floats changed(const Block& b, Floats x, Floats key, Floats query, Floats slope) {
  if (b.sight.softcap) x = capped(x, b.sight.softcap * kLog2E);
  if (!b.slopes) return x;
  const Floats apart = query - key;
  return x - slope * maximum(apart, -apart);
}

inline void change_scores(const Block& b, int64_t at, int64_t from, int64_t filled, int64_t lanes, const float* slopes,
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
inline void soften(float* scores, int64_t lanes, int64_t count, float* top, float* total, float* shrink) {
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

#include "attention_few.h"

// Of what `b` looks at: in tiles that begin at multiples of kTile, so that a row's sums have the same order wherever
// its block begins; a tile of which a row sees nothing leaves that row's sums as they are, bit for bit.
inline void attend(const Block& b, float* space, const Partial& result) {
  const int64_t rows = b.rows(), lanes = (rows + kLanes - 1) / kLanes * kLanes, pitch = padded(b.width);
  const int64_t mixed_pitch = padded(b.value_width);
  float* q = space;
  float* scores = q + lanes * b.width;
  float* shrink = scores + lanes * kTile;
  float *slopes = shrink + lanes, *positions = slopes + lanes;
  int32_t* visible = reinterpret_cast<int32_t*>(positions + lanes);
  int32_t* oldest = visible + lanes;
  float* wide_keys = shrink + 5 * padded(rows);
  float* wide_values = wide_keys + kTile * (pitch + kPad);  // transposed keys take a little more than wide ones
  const int64_t bytes = b.width * (b.type == KvType::f32 ? 4 : 2);  // of a key or a value
  const int64_t begin = b.first / kTile * kTile, first_end = begin + kTile < b.last ? begin + kTile : b.last;
  Ahead{b.k + b.first % b.places * bytes, b.k + ((first_end - 1) % b.places + 1) * bytes}.fetch(INT64_MAX);
  const bool few = rows <= kMostFew;
  if (!b.turned && few) with_few(rows, [&](auto n) { interleave_queries<decltype(n)::value>(b, q); });
  if (!b.turned && !few) transpose_queries(b, lanes, q);
  for (int64_t row = 0; row < lanes; ++row) {
    const int64_t real = row < rows ? row : rows - 1, position = b.position + real / b.group;
    visible[row] = static_cast<int32_t>(b.sight.visible(position, b.length));
    oldest[row] = static_cast<int32_t>(b.sight.oldest(position));
    positions[row] = static_cast<float>(position);
    slopes[row] = b.slopes ? b.slopes[real % b.group] * kLog2E : 0.0f;
    result.top[row] = Partial::kLowest, result.total[row] = 0.0f;
  }
  std::memset(result.mixed, 0, rows * mixed_pitch * sizeof(float));

  for (int64_t at = begin; at < b.last; at += kTile) {
    const int64_t lead = at < b.first ? b.first - at : 0, count = b.last - at < kTile ? b.last - at : kTile;
    const int64_t step = few ? kLanes : kStrip, filled = (count + step - 1) / step * step, place = at % b.places;
    const int64_t left = b.last - at - count, next_count = left < kTile ? left : kTile;
    const uint8_t *k = b.k + place * bytes, *v = b.v + place * bytes, *next_k = b.k + (at + kTile) % b.places * bytes;
    const Ahead values_ahead{v + lead * bytes, v + count * bytes};
    Ahead keys_ahead{next_k, next_k + next_count * bytes};
    const bool changes = b.sight.softcap || b.slopes;
    const bool hides = at + count > visible[0] || at < oldest[rows - 1] || lead || filled > count;
    const auto hide = [&](float& score, int64_t s, int64_t row) {
      const int32_t position = s < lead ? -1 : s < count ? static_cast<int32_t>(at + s) : INT32_MAX;
      score = position >= oldest[row] && position < visible[row] ? score : -__builtin_inff();
    };
    if (few) {
      score_few(b, k, lead, count, q, wide_keys, wide_values, scores, values_ahead);
      if (changes) change_few(b, at, lead / kLanes * kLanes, filled, slopes, positions, scores);
      for (int64_t row = 0; row < (hides ? rows : 0); ++row) {
        for (int64_t s = 0; s < filled; ++s) hide(scores[row * kTile + s], s, row);
      }
      soften_few(scores, rows, filled, result.top, result.total, shrink);
    } else {
      const float* keys = reinterpret_cast<const float*>(k);
      int64_t keys_pitch = b.width;
      if (b.type != KvType::f32) {
        widen(k, b.width, b.type, count, b.width, wide_keys);
        keys = wide_keys, keys_pitch = pitch;
      }
      score_tile(b, keys, keys_pitch, lead, count, q, lanes, scores, values_ahead);
      if (changes) change_scores(b, at, lead / kStrip * kStrip, filled, lanes, slopes, positions, scores);
      for (int64_t s = 0; s < (hides ? filled : 0); ++s) {
        for (int64_t row = 0; row < lanes; ++row) hide(scores[s * lanes + row], s, row);
      }
      for (int64_t row = 0; row < lanes; row += kLanes) {
        soften(scores + row, lanes, filled, result.top + row, result.total + row, shrink + row);
      }
    }
    // A cache of halves is widened in registers for few rows, and once for all of many.
    KvType type = b.type;
    const uint8_t* values = v;
    int64_t values_pitch = bytes;
    if (!few && b.type != KvType::f32 && b.v == b.k) {
      values = reinterpret_cast<const uint8_t*>(wide_keys), values_pitch = pitch * 4, type = KvType::f32;
    } else if ((b.type != KvType::f32 && rows > kStrip) || b.value_width % kLanes) {
      widen(v, b.width, b.type, count, b.value_width, wide_values);
      values = reinterpret_cast<const uint8_t*>(wide_values), values_pitch = mixed_pitch * 4, type = KvType::f32;
    }
    values += lead * values_pitch;
    if (few) {
      mixer<kTile>(type)(0, rows, scores + lead, 1, count - lead, values, values_pitch, shrink, result.mixed,
                         mixed_pitch, b.value_width, keys_ahead);
    } else {
      mixer<1>(type)(0, rows, scores + lead * lanes, lanes, count - lead, values, values_pitch, shrink, result.mixed,
                     mixed_pitch, b.value_width, keys_ahead);
    }
  }
}
