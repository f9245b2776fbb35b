// Super-blocks of 8 sub-blocks of 32 elements, with NEON.
#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstring>
#include <initializer_list>
#include <utility>

#include "weights.h"

#include "neon_begin.h"

namespace packlight {
namespace {

#include "quantize.h"
#include "vectors_neon.h"
#include "sources.h"
#include "dot_words.h"
#include "block.h"
#include "tile.h"
#include "sources_sub32.h"

}  // namespace

Multiply neon_sub32(Type type) { return find_sub32(type); }

namespace {

Multiply find(Type type) {
  for (const auto part : {neon_sub16, neon_sub32, neon_block32, neon_small, neon_numbers, neon_codebook}) {
    if (const Multiply multiply = part(type)) return multiply;
  }
  return nullptr;
}

}  // namespace

const Kernels kNeon = {kLanes, quantize, find};

}  // namespace packlight

#include "neon_end.h"

#endif  // defined(__aarch64__)
