// One block's attention, a tile of positions at a time with a running softmax. Included inside each instruction set's
// namespace and target, which bring Floats, kLanes, kStrip and the few operations on them.
//
// Nothing is ever added across lanes but a softmax's total, so that a sum has one order whatever a lane holds: a query
// row (attention_many.h) or, for few rows, a position (attention_few.h) in the scores, and a column in the values.
// Source: online softmax (1805.02867), FlashAttention (2205.14135).

#include "exp2.h"

constexpr int kPanel = 2;  // vectors of rows, or of columns, that one pass keeps in registers
constexpr float kLog2E = 1.44269504088896341f;

// Memory that the next step reads, fetched a few lines at a time while this one computes: keys are read in an order
// that CPUs do not foresee, and without this a thread waits for memory half of its time. Many lines at once are no
// help: a CPU whose queue of misses is full forgets the rest.
struct Ahead {
  const uint8_t *at, *end;
  int64_t lines() const { return (end - at + 63) / 64; }
  void fetch(int64_t most) {
    for (; most > 0 && at < end; --most, at += 64) __builtin_prefetch(at);
  }
};

inline Floats load_as(const uint8_t* p, KvType type) {
  if (type == KvType::f32) return load(reinterpret_cast<const float*>(p));
  if (type == KvType::q8) return load_int8(p);
  const auto* halves = reinterpret_cast<const uint16_t*>(p);
  return type == KvType::f16 ? load_f16(halves) : load_bf16(halves);
}

// The first `width` channels of `count` keys or values as f32, `padded(width)` floats apart with zeros at the end of
// each. They lie `pitch` channels apart.
template <KvType kType>
inline void widen(const uint8_t* from, int64_t pitch, int64_t count, int64_t width, float* to) {
  constexpr int64_t kBytes = bytes_of(kType);
  const int64_t whole = width / kLanes * kLanes;
  for (int64_t s = 0; s < count; ++s, from += pitch * kBytes, to += padded(width)) {
    for (int64_t c = 0; c < whole; c += kLanes) store(to + c, load_as(from + c * kBytes, kType));
    if (whole < width) {
      uint8_t rest[4 * kLanes] = {};  // loading a whole vector might read past the cache's end
      std::memcpy(rest, from + whole * kBytes, (width - whole) * kBytes);
      store(to + whole, load_as(rest, kType));
    }
  }
}

inline void widen(const uint8_t* from, int64_t pitch, KvType type, int64_t count, int64_t width, float* to) {
  if (type == KvType::f32) return widen<KvType::f32>(from, pitch, count, width, to);
  if (type == KvType::f16) return widen<KvType::f16>(from, pitch, count, width, to);
  widen<KvType::bf16>(from, pitch, count, width, to);
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

#include "attention_many.h"

#include "attention_few.h"

#include "attention_int8.h"

#include "attention_int4.h"

#include "attention_mix.h"

// Of what `b` looks at: in tiles that begin at multiples of kTile, so that a row's sums have the same order wherever
// its block begins; a tile of which a row sees nothing leaves that row's sums as they are, bit for bit.
inline void attend(const Block& b, float* space, const Partial& result) {
  const int64_t rows = b.rows(), lanes = (rows + kLanes - 1) / kLanes * kLanes, pitch = padded(b.width);
  const int64_t mixed_pitch = padded(b.value_width);
  float* q = space;
  float* scores = q + lanes * query_space(b.width);
  float* shrink = scores + lanes * kTile;
  float *slopes = shrink + lanes, *positions = slopes + lanes;
  int32_t* visible = reinterpret_cast<int32_t*>(positions + lanes);
  int32_t* oldest = visible + lanes;
  float* wide_keys = shrink + 5 * padded(rows);
  float* wide_values = wide_keys + kTile * (pitch + kPad);  // transposed keys take a little more than wide ones
  const bool int4 = b.type == KvType::q4, int8 = b.type == KvType::q8 || int4;
  const int64_t blocks = blocks_of(b.width);
  float* value_scales = wide_values + kTile * pitch;
  float* key_scales = value_scales + kTile * blocks + kPad;
  auto* whole = reinterpret_cast<int8_t*>(key_scales + kTile * blocks);  // a tile that was in 4 bits
  const int64_t bytes = bytes_of(b.type, b.width);
  const int64_t begin = b.first / kTile * kTile, first_end = begin + kTile < b.last ? begin + kTile : b.last;
  const bool few = rows <= kMostFew;
  if (!b.turned) {
    Ahead{b.k + b.first % b.places * bytes, b.k + ((first_end - 1) % b.places + 1) * bytes}.fetch(INT64_MAX);
    if (int8) {
      few ? round_few(b, q) : round_many(b, lanes, q);
    } else {
      few ? interleave_queries(b, q) : transpose_queries(b, lanes, q);
    }
  }
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
    const int64_t left = b.following - at - count, next_count = left < kTile ? left : kTile;
    const uint8_t *k = b.k + place * bytes, *v = b.v + place * bytes, *next_k = b.k + (at + kTile) % b.places * bytes;
    const Ahead values_ahead{v + lead * bytes, v + count * bytes};
    Ahead keys_ahead{next_k, next_k + next_count * bytes};
    if (int4) k = unpack_int4(k, b.width, lead, count, whole);
    if (int8) {
      fetch_scales(b, (at + kTile) % b.places, next_count);
      spread_scales(b.k_scales + place * blocks, blocks, lead, count, value_scales, key_scales);
    }
    const bool changes = b.sight.softcap || b.slopes;
    const bool hides = at + count > visible[0] || at < oldest[rows - 1] || lead || filled > count;
    const auto hide = [&](float& score, int64_t s, int64_t row) {
      const int32_t position = s < lead ? -1 : s < count ? static_cast<int32_t>(at + s) : INT32_MAX;
      score = position >= oldest[row] && position < visible[row] ? score : -__builtin_inff();
    };
    if (few) {
      int8 ? score_few_int8(b, k, lead, count, q, wide_keys, wide_values, key_scales, scores, values_ahead)
           : score_few(b, k, lead, count, q, wide_keys, wide_values, scores, values_ahead);
      if (changes) change_few(b, at, lead / kLanes * kLanes, filled, slopes, positions, scores);
      for (int64_t row = 0; row < (hides ? rows : 0); ++row) {
        for (int64_t s = 0; s < filled; ++s) hide(scores[row * kTile + s], s, row);
      }
      soften_few(scores, rows, filled, result.top, result.total, shrink);
    } else {
      int8 ? score_many_int8(b, k, lead, count, q, lanes, wide_keys, key_scales, scores, values_ahead)
           : score_many(b, k, lead, count, q, lanes, wide_keys, scores, values_ahead);
      if (changes) change_many(b, at, lead / kStrip * kStrip, filled, lanes, slopes, positions, scores);
      for (int64_t s = 0; s < (hides ? filled : 0); ++s) {
        for (int64_t row = 0; row < lanes; ++row) hide(scores[s * lanes + row], s, row);
      }
      for (int64_t row = 0; row < lanes; row += kLanes) {
        soften_many(scores + row, lanes, filled, result.top + row, result.total + row, shrink + row);
      }
    }
    // A cache of halves is widened in registers for few rows, and once for all of many.
    KvType type = b.type;
    const uint8_t* values = v;
    int64_t values_pitch = bytes;
    if (int8) widen_scales(b.v_scales + (place + lead) * blocks, blocks, count - lead, value_scales);
    if (int4) values = unpack_int4(v, b.width, lead, count, whole), values_pitch = b.width, type = KvType::q8;
    if (!few && b.type != KvType::f32 && !int8 && b.v == b.k) {
      values = reinterpret_cast<const uint8_t*>(wide_keys), values_pitch = pitch * 4, type = KvType::f32;
    } else if ((!few && b.type != KvType::f32 && rows > kStrip) || b.value_width % kLanes) {
      int8 ? widen_int8(values + lead * values_pitch, b.width, count - lead, b.value_width, value_scales, blocks,
                        wide_values + lead * mixed_pitch)
           : widen(v, b.width, b.type, count, b.value_width, wide_values);
      values = reinterpret_cast<const uint8_t*>(wide_values), values_pitch = mixed_pitch * 4, type = KvType::f32;
    }
    values += lead * values_pitch;
    if (few) {
      mixer<kTile>(type)(0, rows, scores + lead, 1, count - lead, values, values_pitch, value_scales, blocks, shrink,
                         result.mixed, mixed_pitch, b.value_width, keys_ahead);
    } else {
      mixer<1>(type)(0, rows, scores + lead * lanes, lanes, count - lead, values, values_pitch, value_scales, blocks,
                     shrink, result.mixed, mixed_pitch, b.value_width, keys_ahead);
    }
  }
}
