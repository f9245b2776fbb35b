// Norms and dot products of rows on any CPU.

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>

#include "norm.h"

namespace packlight {
namespace {

#include "floats_portable.h"
#include "norm_kernel.h"

}  // namespace

const RowKernels kPortableRows = {norm_rows, dot_rows};

}  // namespace packlight
