// What an attention kernel is given: queries that share a kv head, and the cached positions they look at.
#ifndef PACKLIGHT_ATTENTION_H_
#define PACKLIGHT_ATTENTION_H_

#include <cstdint>

namespace packlight {

enum class KvType { f32, f16, bf16, q8, q4 };

// Of a channel, which q4 has two of in a byte.
constexpr int64_t bytes_of(KvType type) { return type == KvType::f32 ? 4 : type == KvType::q8 ? 1 : 2; }
// Of a key or a value.
constexpr int64_t bytes_of(KvType type, int64_t width) {
  return type == KvType::q4 ? width / 2 : width * bytes_of(type);
}

constexpr int64_t kTile = 64;  // positions at a time: with C = 64 their keys or values are 16 KB of f32
constexpr int64_t kPart = 256;  // positions that are added up before they are added to others: a multiple of kTile
constexpr int64_t kPad = 16;   // floats; at least every instruction set's vector

constexpr int64_t kBlock = 32;  // channels of int8, or of 4 bits, that share a scale

constexpr int64_t blocks_of(int64_t width) { return (width + kBlock - 1) / kBlock; }
constexpr int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

// What a query sees of a text, and what is done to its scores.
struct Sight {
  bool causal;     // a token sees what is before it and itself; otherwise all of its text, or a window half to each side
  int64_t window;  // positions that a token sees, itself included; 0: all
  bool chunked;    // of the window's positions a token sees those in its own run of as many
  float softcap;   // c: scores become c tanh(score / c); 0: they stay

  int64_t oldest(int64_t position) const {
    if (!window) return 0;
    const int64_t first = chunked ? position / window * window : position - (causal ? window - 1 : window / 2);
    return first > 0 ? first : 0;
  }
  // One past the last position that is seen of a text of `length`.
  int64_t visible(int64_t position, int64_t length) const {
    const int64_t last = causal ? position + 1 : window ? position + window / 2 + 1 : length;
    return last < length ? last : length;
  }
};

// Row r of a block is query head r % group of token r / group.
struct Block {
  const float* q;        // the first token's first head; heads follow each other, C floats each
  int64_t token_stride;  // floats from one token to the next
  int64_t tokens, group, width;  // width is C
  int64_t value_width;   // the first channels of a value that count, at most C
  const uint8_t *k, *v;  // the head's place 0: (places, C) of `type`; both may be the same. Position p is at p % places.
  const uint16_t *k_scales, *v_scales;  // of int8 and q4, in halves: (places, blocks of a key)
  KvType type;
  int64_t places;       // a multiple of kTile, or more than any position
  int64_t first, last;  // positions first .. last - 1 are looked at, and nothing else is read
  int64_t following;    // positions up to here are looked at next, by another call
  int64_t position;     // of the first token
  int64_t length;       // of the text
  Sight sight;
  const float* slopes;  // (group,), what a score loses for each position between query and key; null: nothing
  float scale;
  bool turned;          // a call for the positions before these left the queries in `space` and fetched the first keys

  int64_t rows() const { return tokens * group; }
};

// Attention over some of the positions: with w = 2^(score - top), total is the sum of w and mixed that of w * value.
struct Partial {
  float* top;    // padded(rows): each row's largest score, in units of ln 2
  float* total;  // padded(rows)
  float* mixed;  // (rows, padded(value_width))

  static int64_t floats(int64_t rows, int64_t value_width) { return 2 * padded(rows) + rows * padded(value_width); }

  Partial(float* base, int64_t rows) : top(base), total(base + padded(rows)), mixed(base + 2 * padded(rows)) {}

  static constexpr float kLowest = -3.402823466e38f;  // of a row that has seen nothing
};

// Numbers of a row's query: C floats, or C bytes and two numbers a block.
constexpr int64_t query_space(int64_t width) { return width + 2; }

// Floats that `Attend` needs to work in, aligned to 64 bytes: queries, a tile's scores, five numbers a row, a tile of
// keys and one of values as f32, the scales of both, and one of either as int8. Transposed keys take up to kPad words
// more than they are wide.
constexpr int64_t attend_space(int64_t rows, int64_t width) {
  return padded(rows) * (query_space(width) + kTile + 5) + kTile * (2 * padded(width) + kPad + 2 * blocks_of(width)) +
         kPad + kTile * padded(width) / 4;
}

using Attend = void (*)(const Block& block, float* space, const Partial& result);

void attend_portable(const Block& block, float* space, const Partial& result);
#if defined(__x86_64__)
void attend_avx2(const Block& block, float* space, const Partial& result);
void attend_avx512(const Block& block, float* space, const Partial& result);
#endif

}  // namespace packlight

#endif  // PACKLIGHT_ATTENTION_H_
