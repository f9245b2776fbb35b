// Formats of 1 and 2 bits, of three values, and NVFP4, with AVX2.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>
#include <initializer_list>
#include <utility>

#include "weights.h"

#include "avx2_begin.h"

namespace packlight {
namespace {

#include "vectors_avx2.h"
#include "sources.h"
#include "dot_avx2.h"
#include "block_small.h"
#include "transpose_x86.h"
#include "tile.h"
#include "sources_small.h"

}  // namespace

Multiply avx2_small(Type type) { return find_small(type); }

}  // namespace packlight

#include "avx2_end.h"

#endif  // defined(__x86_64__)
