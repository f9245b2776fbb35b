// Formats with blocks of 32 elements, with NEON.
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
#include "block.h"
#include "tile.h"
#include "sources_block32.h"

}  // namespace

Multiply neon_block32(Type type) { return find_block32(type); }

}  // namespace packlight

#include "neon_end.h"

#endif  // defined(__aarch64__)
