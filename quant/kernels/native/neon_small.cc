// Formats of 1 and 2 bits, of three values, and NVFP4, with NEON.
#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstring>
#include <initializer_list>
#include <utility>

#include "weights.h"

#include "neon_begin.h"

namespace packlight {
namespace {

#include "vectors_neon.h"
#include "sources.h"
#include "dot_words.h"
#include "block_small.h"
#include "tile.h"
#include "sources_small.h"

}  // namespace

Multiply neon_small(Type type) { return find_small(type); }

}  // namespace packlight

#include "neon_end.h"

#endif  // defined(__aarch64__)
