// Norms and dot products of rows with AVX-512.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#include "norm.h"

#include "avx512_begin.h"

namespace packlight {
namespace {

#include "floats_avx512.h"
#include "norm_kernel.h"

}  // namespace

const RowKernels kAvx512Rows = {norm_rows, dot_rows};

}  // namespace packlight

#include "avx512_end.h"

#endif  // defined(__x86_64__)
