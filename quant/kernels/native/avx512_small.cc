// Formats of 1 and 2 bits, of three values, and NVFP4, with AVX-512.
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
#include "block_small.h"
#include "transpose_x86.h"
#include "tile.h"
#include "sources_small.h"

}  // namespace

Multiply avx512_small(Type type) { return find_small(type); }

}  // namespace packlight

#include "avx512_end.h"

#endif  // defined(__x86_64__)
