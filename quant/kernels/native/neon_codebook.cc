// Super-blocks whose quants are entries of a grid, with NEON.
#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <utility>

#include "grids.h"
#include "weights.h"

#include "neon_begin.h"

namespace packlight {
namespace {

#include "vectors_neon.h"
#include "sources.h"
#include "grids_words.h"
#include "grids_neon.h"
#include "dot_words.h"
#include "block.h"
#include "tile.h"
#include "sources_codebook.h"

}  // namespace

Multiply neon_codebook(Type type) { return find_codebook(type); }

}  // namespace packlight

#include "neon_end.h"

#endif  // defined(__aarch64__)
