// What every kernel is given: packed weights, int8 activations, and where the product goes. No instruction set here.
#ifndef PACKLIGHT_WEIGHTS_H_
#define PACKLIGHT_WEIGHTS_H_

#include <cstdint>

namespace packlight {

// ggml's type ids.
enum Type : int64_t {
  Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8,
  Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14,
  IQ2_XXS = 16, IQ2_XS = 17, IQ3_XXS = 18, IQ1_S = 19, IQ3_S = 21, IQ2_S = 22, IQ1_M = 29,
  IQ4_NL = 20, IQ4_XS = 23, MXFP4 = 39,
};

// A run of equal-sized pieces of a block: bytes offset .. offset + length - 1, cut into units of `unit` bytes.
// In layout "rowsN" (N lanes: 4, 8 or 16) the blocks of N consecutive rows are one group block of N * bytes, and a field
// takes its bytes N * offset ... as (length / unit, N rows, unit): first every row's first unit, then every row's second.
struct Field {
  int offset, length, unit;
};

struct Format {
  Type type;
  int elements;  // weights per block, and activations that share one scale
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
};

constexpr const Format* find_format(int64_t type) {
  for (const Format& f : kFormats) {
    if (f.type == type) return &f;
  }
  return nullptr;
}

struct Weights {
  const Format* format;
  int lanes;            // rows interleaved: 1 is ggml's own layout
  int64_t out, blocks;  // rows, blocks per row
  const uint8_t* data;  // (ceil(out / lanes), blocks, lanes * bytes)
};

// Sums of a 256-block's int8 activations over runs of 16 and of 32: what a weight's minimum or offset multiplies.
struct Sums {
  int16_t by16[16], by32[8];
};

// The rows of x as int8 with one f32 scale per block of 32 or 256: x is about d * q.
struct Activations {
  int64_t rows, width;
  int block;
  int8_t* q;     // (rows, width)
  float* d;      // (rows, width / block)
  Sums* sums;    // (rows, width / 256), when block is 256
  float* d_sum;  // (rows, width / 32), d * sum of the block's q, when block is 32
  int16_t* sum;  // (rows, width / 32), that sum

  // Bytes of scratch that hold all this; native_ops.py reserves as much.
  static int64_t bytes(int64_t rows, int64_t width) { return (rows * width * 21 / 16 + 63) / 64 * 64; }

  void place(uint8_t* scratch, int64_t rows_, int64_t width_, int block_) {
    rows = rows_, width = width_, block = block_;
    q = reinterpret_cast<int8_t*>(scratch);
    d = reinterpret_cast<float*>(scratch + rows * width);
    uint8_t* rest = scratch + rows * width + rows * (width / block) * 4;
    sums = reinterpret_cast<Sums*>(rest);
    d_sum = reinterpret_cast<float*>(rest);
    sum = reinterpret_cast<int16_t*>(rest + rows * (width / block) * 4);
  }

  // Rows first .. first + count - 1 of these.
  Activations part(int64_t first, int64_t count) const {
    const int64_t blocks = first * (width / block);
    return {count, width, block, q + first * width, d + blocks, sums + blocks, d_sum + blocks, sum + blocks};
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
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2, kAvx512;
Multiply avx2_sub16(Type type);  // in parts that compile side by side; null for other types
Multiply avx2_sub32(Type type);
Multiply avx2_block32(Type type);
Multiply avx2_codebook(Type type);
Multiply avx512_sub16(Type type);
Multiply avx512_sub32(Type type);
Multiply avx512_block32(Type type);
Multiply avx512_codebook(Type type);
#elif defined(__aarch64__)
extern const Kernels kNeon;
Multiply neon_sub16(Type type);
Multiply neon_sub32(Type type);
Multiply neon_block32(Type type);
Multiply neon_codebook(Type type);
#endif

}  // namespace packlight

#endif  // PACKLIGHT_WEIGHTS_H_
