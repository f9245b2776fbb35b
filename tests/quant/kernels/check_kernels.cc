// Every format through KERNELS, the kernels of one instruction set, against the portable ones, in both layouts, on
// ragged sizes. Prints the worst relative error; tests/quant/kernels/test_native_builds.py builds and runs it.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "grids.h"
#include "weights.h"

extern "C" void packlight_pack(int64_t type, int64_t lanes, int64_t out, int64_t n, const uint8_t* blocks,
                               uint8_t* packed);
extern "C" void packlight_set_grid(int64_t type, const int8_t* values);

namespace packlight {
namespace {

std::mt19937 rng(1);

// Where a format keeps float16 scales; -1 is none.
struct Halves {
  int first, second;
};

Halves halves_of(Type type) {
  switch (type) {
    case MXFP4: case NVFP4: return {-1, -1};
    case TQ1_0: return {52, -1};
    case TQ2_0: return {64, -1};
    case Q2_K: return {80, 82};
    case Q3_K: return {108, -1};
    case Q6_K: return {208, -1};
    case Q4_1: case Q5_1: case Q4_K: case Q5_K: return {0, 2};
    default: return {0, -1};
  }
}

std::vector<uint8_t> random_blocks(const Format& f, int64_t count) {
  std::vector<uint8_t> blocks(count * f.bytes);
  if (f.elements == 1) {  // with the upper bits of numbers from 2^-3 up, of either sign
    for (int64_t b = 0; b < count; ++b) {
      const uint32_t bits = f.type == F16 ? 0x30000000 + (rng() & 0x83FF0000) : 0x3E000000 + (rng() & 0x807FFFFF);
      std::memcpy(&blocks[b * f.bytes], reinterpret_cast<const uint8_t*>(&bits) + 4 - f.bytes, f.bytes);
    }
    return blocks;
  }
  for (auto& byte : blocks) byte = static_cast<uint8_t>(rng());
  const Halves at = halves_of(f.type);
  for (int64_t b = 0; b < count; ++b) {
    for (const int offset : {at.first, at.second}) {
      const uint16_t half = static_cast<uint16_t>(0x2000 + rng() % 0x800);
      if (offset >= 0) std::memcpy(&blocks[b * f.bytes + offset], &half, 2);
    }
    if (f.type == IQ1_M) blocks[b * f.bytes + 53] = 0xC5, blocks[b * f.bytes + 55] = 0x19;
    if (f.type == MXFP4) blocks[b * f.bytes] = static_cast<uint8_t>(118 + rng() % 4);
  }
  return blocks;
}

// A grid with ggml's number of levels: 8 for 4 weights, 3 for 8.
void set_grid(const Format& f) {
  std::vector<int8_t> values(grid_entries(f.type) * grid_width(f.type));
  for (auto& value : values) {
    if (grid_width(f.type) == 4) value = static_cast<int8_t>(f.type == IQ3_S ? 1 + 2 * (rng() % 8) : 6 + 8 * (rng() % 8));
    else value = static_cast<int8_t>(grid_type(f.type) == IQ1_S ? rng() % 3 - 1 : 8 + 17 * (rng() % 3));
  }
  packlight_set_grid(f.type, values.data());
}

std::vector<float> product(const Kernels& kernels, const Weights& w, const std::vector<float>& x, int64_t rows) {
  const int64_t width = w.blocks * w.format->elements;
  const Rounding rounding = kernels.rounding(*w.format);
  std::vector<uint8_t> scratch(Activations::bytes(rows, width, rounding));
  Activations activations;
  activations.place(x.data(), scratch.data(), rows, width, rounding);
  for (int64_t row = 0; row < rows && rounding != Rounding::none; ++row) {
    kernels.quantize(&x[row * width], activations, row);
  }
  std::vector<float> y(rows * w.out);
  kernels.multiply(w.format->type)(w, activations, 0, (w.out + kernels.lanes - 1) / kernels.lanes, y.data());
  return y;
}

double compare(const Format& f, int64_t rows, int64_t out, int64_t n, int lanes) {
  const auto blocks = random_blocks(f, out * n);
  std::vector<uint8_t> packed((out + lanes - 1) / lanes * lanes * n * f.bytes);
  packlight_pack(f.type, lanes, out, n, blocks.data(), packed.data());
  std::vector<float> x(rows * n * f.elements);
  for (auto& value : x) value = std::normal_distribution<float>()(rng);
  if (f.type == BF16) {  // nothing is left to round to bfloat16, which the portable kernels do not
    for (auto& value : x) value = std::ldexp(std::round(std::ldexp(value, 4)), -4);
  }
  const auto want = product(kPortable, {&f, 1, out, n, blocks.data()}, x, rows);
  const auto got = product(KERNELS, {&f, lanes, out, n, packed.data()}, x, rows);
  double error = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += std::pow(want[i] - got[i], 2);
    norm += std::pow(want[i], 2);
  }
  return std::sqrt(error / norm);
}

}  // namespace
}  // namespace packlight

int main() {
  using namespace packlight;
  double worst = 0;
  for (const Format& f : kFormats) {
    if (grid_entries(f.type)) set_grid(f);
    for (const int64_t rows : {1, 2, 3, 5, 8, 9, 33}) {
      for (const int64_t out : {1, 7, 16, 37}) {
        for (const int64_t blocks : {1, 9}) {
          const int64_t n = f.elements == 1 ? 31 * blocks : blocks;
          for (const int lanes : {1, KERNELS.lanes}) worst = std::fmax(worst, compare(f, rows, out, n, lanes));
        }
      }
    }
  }
  std::printf("%g\n", worst);
}
