// Takes the grids of the IQ formats.

#include "grids.h"

#include <algorithm>

#include "export.h"

namespace packlight {
namespace {

Grid* find(Type type) {
  switch (grid_type(type)) {
    case IQ2_XXS: return &grid_of<IQ2_XXS>;
    case IQ2_XS: return &grid_of<IQ2_XS>;
    case IQ2_S: return &grid_of<IQ2_S>;
    case IQ3_XXS: return &grid_of<IQ3_XXS>;
    case IQ3_S: return &grid_of<IQ3_S>;
    case IQ1_S: return &grid_of<IQ1_S>;
    default: return nullptr;
  }
}

void fill(Type type, const int8_t* values, Grid& grid) {
  const int width = grid_width(type), count = grid_entries(type) * width, scale = grid_type(type) == IQ1_S ? 8 : 1;
  for (int i = 0; i < count; ++i) grid.values[i] = static_cast<uint8_t>(scale * values[i] + grid_offset(type));
  int levels = 0;
  for (int value = 0; value < 256 && levels < 8; ++value) {
    if (std::count(grid.values, grid.values + count, value)) grid.levels[levels++] = static_cast<uint8_t>(value);
  }
  for (int i = 0; i < count; ++i) {
    const int level = static_cast<int>(std::find(grid.levels, grid.levels + levels, grid.values[i]) - grid.levels);
    const int weight = i % width, at = weight % 2 * 8 + weight / 2 * (width == 4 ? 4 : 2);
    uint16_t& code = grid.codes[i / width];
    code = static_cast<uint16_t>((weight ? code : 0) | level << at);
  }
  grid.set = true;
}

}  // namespace

bool has_its_grid(Type type) {
  const Grid* grid = find(type);
  return !grid || grid->set;
}

}  // namespace packlight

// values: (entries, width) of a format that has a grid. Before the first product with it; again it writes the same.
PACKLIGHT_EXPORT void packlight_set_grid(int64_t type, const int8_t* values) {
  using namespace packlight;
  const Type of = static_cast<Type>(type);
  if (Grid* grid = find(of)) fill(of, values, *grid);
}
