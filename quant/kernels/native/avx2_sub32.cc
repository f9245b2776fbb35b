// Super-blocks of 8 sub-blocks of 32 elements, with AVX2.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>
#include <initializer_list>
#include <utility>

#include "weights.h"

#include "avx2_begin.h"

namespace packlight {
namespace {

#include "quantize.h"
#include "vectors_avx2.h"
#include "sources.h"
#include "dot_avx2.h"
#include "block.h"
#include "transpose_x86.h"
#include "tile.h"
#include "sources_sub32.h"

}  // namespace

Multiply avx2_sub32(Type type) { return find_sub32(type); }

namespace {

Multiply find(Type type) {
  for (const auto part : {avx2_sub16, avx2_sub32, avx2_block32, avx2_small, avx2_numbers, avx2_codebook}) {
    if (const Multiply multiply = part(type)) return multiply;
  }
  return nullptr;
}

}  // namespace

const Kernels kAvx2 = {kLanes, quantize, find};

}  // namespace packlight

#include "avx2_end.h"

#endif  // defined(__x86_64__)
