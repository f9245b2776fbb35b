// What every kernel is given: packed weights, int8 activations, and where the product goes. No instruction set here.
#ifndef PACKLIGHT_WEIGHTS_H_
#define PACKLIGHT_WEIGHTS_H_

#include <cstdint>
#include <cstring>

namespace packlight {

// ggml's type ids.
enum Type : int64_t {
  F32 = 0, F16 = 1, BF16 = 30,
  Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8,
  Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14,
  IQ2_XXS = 16, IQ2_XS = 17, IQ3_XXS = 18, IQ1_S = 19, IQ3_S = 21, IQ2_S = 22, IQ1_M = 29,
  IQ4_NL = 20, IQ4_XS = 23, MXFP4 = 39,
  TQ1_0 = 34, TQ2_0 = 35, NVFP4 = 40, Q1_0 = 41, Q2_0 = 42,
};

// A run of equal-sized pieces of a block: bytes offset .. offset + length - 1, cut into units of `unit` bytes.
// In layout "rowsN" (N lanes: 4, 8 or 16) the blocks of N consecutive rows are one group block of N * bytes, and a field
// takes its bytes N * offset ... as (length / unit, N rows, unit): first every row's first unit, then every row's second.
struct Field {
  int offset, length, unit;
};

struct Format {
  Type type;
  int elements;  // weights per block; 1 of plain numbers
  int bytes;     // per block
  Field fields[5];  // cover the block; unused ones have length 0
};

// Units of 4 bytes are 4 consecutive quants (8 of a nibble format): one 32-bit lane of a vector per row. Scales are cut
// so that one load gives the same scale of all rows.
inline constexpr Format kFormats[] = {
    {Q4_0, 32, 18, {{0, 2, 2}, {2, 16, 4}}},
    {Q4_1, 32, 20, {{0, 2, 2}, {2, 2, 2}, {4, 16, 4}}},
    {Q5_0, 32, 22, {{0, 2, 2}, {2, 20, 4}}},
    {Q5_1, 32, 24, {{0, 2, 2}, {2, 2, 2}, {4, 20, 4}}},
    {Q8_0, 32, 34, {{0, 2, 2}, {2, 32, 4}}},
    {Q2_K, 256, 84, {{0, 16, 2}, {16, 64, 4}, {80, 2, 2}, {82, 2, 2}}},
    {Q3_K, 256, 110, {{0, 108, 4}, {108, 2, 2}}},
    {Q4_K, 256, 144, {{0, 2, 2}, {2, 2, 2}, {4, 140, 4}}},
    {Q5_K, 256, 176, {{0, 2, 2}, {2, 2, 2}, {4, 172, 4}}},
    {Q6_K, 256, 210, {{0, 192, 4}, {192, 16, 2}, {208, 2, 2}}},
    {IQ2_XXS, 256, 66, {{0, 2, 2}, {2, 64, 4}}},
    {IQ2_XS, 256, 74, {{0, 2, 2}, {2, 64, 4}, {66, 8, 1}}},
    {IQ2_S, 256, 82, {{0, 2, 2}, {2, 64, 4}, {66, 16, 1}}},
    {IQ3_XXS, 256, 98, {{0, 2, 2}, {2, 96, 4}}},
    {IQ3_S, 256, 110, {{0, 2, 2}, {2, 64, 4}, {66, 8, 1}, {74, 32, 4}, {106, 4, 1}}},
    {IQ1_S, 256, 50, {{0, 2, 2}, {2, 32, 4}, {34, 16, 2}}},
    {IQ1_M, 256, 56, {{0, 32, 4}, {32, 24, 2}}},
    {IQ4_NL, 32, 18, {{0, 2, 2}, {2, 16, 4}}},
    {IQ4_XS, 256, 136, {{0, 2, 2}, {2, 2, 2}, {4, 132, 4}}},
    {MXFP4, 32, 17, {{0, 1, 1}, {1, 16, 4}}},
    {Q1_0, 128, 18, {{0, 2, 2}, {2, 16, 4}}},
    {Q2_0, 64, 18, {{0, 2, 2}, {2, 16, 4}}},
    {TQ1_0, 256, 54, {{0, 52, 4}, {52, 2, 2}}},
    {TQ2_0, 256, 66, {{0, 64, 4}, {64, 2, 2}}},
    {NVFP4, 64, 36, {{0, 4, 1}, {4, 32, 4}}},
    {F32, 1, 4, {{0, 4, 4}}},
    {F16, 1, 2, {{0, 2, 2}}},
    {BF16, 1, 2, {{0, 2, 2}}},
};

constexpr const Format* find_format(int64_t type) {
  for (const Format& f : kFormats) {
    if (f.type == type) return &f;
  }
  return nullptr;
}

// How x is rounded for a format: not at all, to bfloat16, or to int8, of which 32 or 256 share one scale. Crossed, their quants stand in
// columns of 4: at 4 w + i that of activation 8 i + w. Halved, what is kept of their sum is kept for each 16.
enum class Rounding { none, pairs, by256, by32, crossed, halved };
inline constexpr int kRoundings = 6;
inline constexpr int kCrossedZero = 1, kHalvedZero = 12;  // the weight's quant that means 0 in such a format

constexpr Rounding rounding_of(const Format& f) {
  if (f.type == Q1_0 || f.type == Q2_0) return Rounding::crossed;
  if (f.type == NVFP4) return Rounding::halved;
  if (f.elements == 1) return Rounding::none;
  return f.elements == 256 ? Rounding::by256 : Rounding::by32;
}

struct Weights {
  const Format* format;
  int lanes;            // rows interleaved: 1 is ggml's own layout
  int64_t out, blocks;  // rows, blocks per row
  const uint8_t* data;  // (ceil(out / lanes), blocks, lanes * bytes)
};

// Sums of a 256-block's int8 activations over runs of 16, of 32, and all: what a weight's minimum or zero multiplies.
struct Sums {
  int16_t by16[16], by32[8], all;
};

// Two neighbouring activations of a row in bfloat16.
struct Pair {
  uint16_t first, second;
};

// The rows of x as int8 with one f32 scale per block of 32 or 256: x is about d * q. Where weights are plain numbers, x is
// as it is, or rounded to bfloat16 if an instruction set has a unit for that.
struct Activations {
  int64_t rows, width;
  Rounding rounding;
  int block;
  int8_t* q;     // (rows, width)
  float* d;      // (rows, width / block)
  Sums* sums;    // (rows, width / 256), when block is 256
  float* d_sum;  // (rows, width / 32), d * sum of the block's q, by32
  int16_t* sum;  // (rows, width / 32), that sum
  int32_t* start;  // (rows, width / 32) crossed, (rows, width / 16) halved: -zero * sum of the q of so many
  const float* values;  // (rows, width), x as it is
  Pair* pairs;          // (rows, ceil(width / 2)), in pairs: 0 after the last of an odd width

  // Bytes of scratch that hold all this; native_ops.py reserves as much.
  static int64_t bytes(int64_t rows, int64_t width, Rounding rounding) {
    if (rounding == Rounding::none) return 0;
    const int64_t bytes = rounding == Rounding::pairs ? rows * pairs_of(width) * 4 : rows * width * 11 / 8;
    return (bytes + 63) / 64 * 64;
  }
  static int64_t pairs_of(int64_t width) { return (width + 1) / 2; }

  void place(const float* x, uint8_t* scratch, int64_t rows_, int64_t width_, Rounding rounding_) {
    rows = rows_, width = width_, rounding = rounding_, block = rounding == Rounding::by256 ? 256 : 32, values = x;
    if (rounding == Rounding::none) return;
    if (rounding == Rounding::pairs) {
      pairs = reinterpret_cast<Pair*>(scratch);
      return;
    }
    q = reinterpret_cast<int8_t*>(scratch);
    d = reinterpret_cast<float*>(scratch + rows * width);
    uint8_t* rest = scratch + rows * width + rows * (width / block) * 4;
    sums = reinterpret_cast<Sums*>(rest);
    d_sum = reinterpret_cast<float*>(rest);
    sum = reinterpret_cast<int16_t*>(rest + rows * (width / block) * 4);
    start = reinterpret_cast<int32_t*>(rest);
  }

  // Rows first .. first + count - 1 of these.
  Activations part(int64_t first, int64_t count) const {
    Activations some = *this;
    some.rows = count, some.values += first * width;
    if (rounding == Rounding::none) return some;
    if (rounding == Rounding::pairs) {
      some.pairs += first * pairs_of(width);
      return some;
    }
    const int64_t blocks = first * (width / block);
    some.q += first * width, some.d += blocks, some.sums += blocks, some.d_sum += blocks, some.sum += blocks;
    some.start += rounding == Rounding::halved ? 2 * blocks : blocks;
    return some;
  }

  // Makes row `to` equal to row `from`, which has been rounded.
  void copy(int64_t from, int64_t to) const {
    const Activations a = part(from, 1), b = part(to, 1);
    if (rounding == Rounding::pairs) {
      std::memcpy(b.pairs, a.pairs, pairs_of(width) * sizeof(Pair));
      return;
    }
    const int64_t blocks = width / block;
    std::memcpy(b.q, a.q, width), std::memcpy(b.d, a.d, blocks * sizeof(float));
    switch (rounding) {
      case Rounding::by256: std::memcpy(b.sums, a.sums, blocks * sizeof(Sums)); break;
      case Rounding::by32:
        std::memcpy(b.d_sum, a.d_sum, blocks * sizeof(float)), std::memcpy(b.sum, a.sum, blocks * sizeof(int16_t));
        break;
      default: std::memcpy(b.start, a.start, (rounding == Rounding::halved ? 2 : 1) * blocks * sizeof(int32_t));
    }
  }
};

// One instruction set's functions. Work is cut into groups of `lanes` rows, and layout "rowsN" must have N = lanes (any
// N for the portable ones): `multiply` makes rows lanes * first .. lanes * last - 1 of y (x.rows, w.out) = x @ w.T.
// `quantize` fills x's row from f32 values.
using Multiply = void (*)(const Weights& w, const Activations& x, int64_t first, int64_t last, float* y);
using Quantize = void (*)(const float* values, const Activations& x, int64_t row);

struct Kernels {
  int lanes;
  Quantize quantize;
  Multiply (*multiply)(Type type);  // for every type of kFormats
  bool pairs = false;  // BF16 weights want activations in bfloat16

  Rounding rounding(const Format& format) const {
    return pairs && format.type == BF16 ? Rounding::pairs : rounding_of(format);
  }
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2, kAvx512, kAvx512Bf16;
Multiply avx2_sub16(Type type);  // in parts that compile side by side; null for other types
Multiply avx2_sub32(Type type);
Multiply avx2_block32(Type type);
Multiply avx2_small(Type type);
Multiply avx512_sub16(Type type);
Multiply avx512_sub32(Type type);
Multiply avx512_block32(Type type);
Multiply avx512_small(Type type);
Multiply avx2_numbers(Type type);
Multiply avx512_numbers(Type type);
Multiply avx2_codebook(Type type);
Multiply avx512_codebook(Type type);
#elif defined(__aarch64__)
extern const Kernels kNeon;
Multiply neon_sub16(Type type);
Multiply neon_sub32(Type type);
Multiply neon_block32(Type type);
Multiply neon_small(Type type);
Multiply neon_numbers(Type type);
Multiply neon_codebook(Type type);
#endif

}  // namespace packlight

#endif  // PACKLIGHT_WEIGHTS_H_
