// Weights of logits with AVX2.
#if defined(__x86_64__)

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "mass.h"

#include "avx2_begin.h"

namespace packlight {
namespace {

#include "mass_kernel.h"

}  // namespace

const MassKernels kAvx2Mass = {weights_of, sums_of, count_from, deviation_of};

}  // namespace packlight

#include "avx2_end.h"

#endif  // defined(__x86_64__)
