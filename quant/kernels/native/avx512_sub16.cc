// Super-blocks of 16 sub-blocks of 16 elements, with AVX-512.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>
#include <initializer_list>
#include <utility>

#include "weights.h"

#include "avx512_begin.h"

namespace packlight {
namespace {

#include "vectors_avx512.h"
#include "sources.h"
#include "dot_words.h"
#include "block.h"
#include "transpose_x86.h"
#include "tile.h"
#include "sources_sub16.h"

}  // namespace

Multiply avx512_sub16(Type type) { return find_sub16(type); }

}  // namespace packlight

#include "avx512_end.h"

#endif  // defined(__x86_64__)
