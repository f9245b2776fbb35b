// Super-blocks of 16 sub-blocks of 16 elements, with AVX2.
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
#include "block.h"
#include "transpose_x86.h"
#include "tile.h"
#include "sources_sub16.h"

}  // namespace

Multiply avx2_sub16(Type type) { return find_sub16(type); }

}  // namespace packlight

#include "avx2_end.h"

#endif  // defined(__x86_64__)
