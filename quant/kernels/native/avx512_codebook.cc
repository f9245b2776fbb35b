// Super-blocks whose quants are entries of a grid, with AVX-512.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <utility>

#include "grids.h"
#include "weights.h"

#include "avx512_begin.h"

namespace packlight {
namespace {

#include "vectors_avx512.h"
#include "sources.h"
#include "grids_words.h"
#include "grids_avx512.h"
#include "dot_words.h"
#include "block.h"
#include "transpose_x86.h"
#include "tile.h"
#include "sources_codebook.h"

}  // namespace

Multiply avx512_codebook(Type type) { return find_codebook(type); }

}  // namespace packlight

#include "avx512_end.h"

#endif  // defined(__x86_64__)
