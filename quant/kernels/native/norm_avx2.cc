// Norms and dot products of rows with AVX2 and FMA.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#include "norm.h"

#include "avx2_begin.h"

namespace packlight {
namespace {

#include "floats_avx2.h"
#include "norm_kernel.h"

}  // namespace

const RowKernels kAvx2Rows = {norm_rows, dot_rows};

}  // namespace packlight

#include "avx2_end.h"

#endif  // defined(__x86_64__)
