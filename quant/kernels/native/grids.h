// The grids of the IQ formats: what an index stands for. quant/formats/iquants.py gives them once, from the `gguf`
// package; none is repeated here.
#ifndef PACKLIGHT_GRIDS_H_
#define PACKLIGHT_GRIDS_H_

#include <cstdint>

#include "weights.h"

namespace packlight {

constexpr Type grid_type(Type type) { return type == IQ1_M ? IQ1_S : type; }  // the format that its grid is named for

// Entries of a format's grid, 0 if it has none.
constexpr int grid_entries(Type type) {
  switch (grid_type(type)) {
    case IQ2_XXS: case IQ3_XXS: return 256;
    case IQ2_XS: case IQ3_S: return 512;
    case IQ2_S: return 1024;
    case IQ1_S: return 2048;
    default: return 0;
  }
}

// Weights of an entry.
constexpr int grid_width(Type type) { return type == IQ3_XXS || type == IQ3_S ? 4 : 8; }

// What is added to a grid's values so that they are unsigned whatever their signs, which x86's instructions want. IQ1's
// are 8 times the file's, so that the +- 1/8 beside them is an integer too.
constexpr int grid_offset(Type type) {
  switch (grid_type(type)) {
    case IQ3_XXS: return 62;
    case IQ3_S: return 15;
    case IQ1_S: return 8;
    default: return 43;
  }
}

// Codes hold an entry in 16 bits, numbers of levels (the values that occur, ascending):
//   4 weights: byte 0 is (number of weight 2) << 4 | number of weight 0, byte 1 those of weights 3 and 1
//   8 weights: byte 0 has weights 0, 2, 4, 6 in two bits each, byte 1 weights 1, 3, 5, 7
// so that a byte shuffle of a 4-byte word and one shift put 4 consecutive weights into its bytes (grids_avx512.h).
struct Grid {
  alignas(64) uint16_t codes[2048];
  uint8_t levels[8];
  bool set;
  alignas(64) uint8_t values[2048 * 8];  // with the offset
  uint8_t after[64];                     // loads of more than an entry end here
};

// That of formats with `grid_type` kType.
template <Type kType>
inline Grid grid_of{};

bool has_its_grid(Type type);  // or needs none

}  // namespace packlight

#endif  // PACKLIGHT_GRIDS_H_
