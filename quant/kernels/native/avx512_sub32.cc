// Super-blocks of 8 sub-blocks of 32 elements, with AVX-512.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>
#include <initializer_list>
#include <utility>

#include "weights.h"

#include "avx512_begin.h"

namespace packlight {
namespace {

#include "quantize.h"
#include "vectors_avx512.h"
#include "sources.h"
#include "dot_words.h"
#include "block.h"
#include "transpose_x86.h"
#include "tile.h"
#include "sources_sub32.h"

}  // namespace

Multiply avx512_sub32(Type type) { return find_sub32(type); }

namespace {

Multiply find(Type type) {
  for (const auto part : {avx512_sub16, avx512_sub32, avx512_block32, avx512_small, avx512_numbers, avx512_codebook}) {
    if (const Multiply multiply = part(type)) return multiply;
  }
  return nullptr;
}

}  // namespace

const Kernels kAvx512 = {kLanes, quantize, find};

}  // namespace packlight

#include "avx512_end.h"

#endif  // defined(__x86_64__)
