// Weights of logits in plain C++.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "mass.h"

namespace packlight {
namespace {

#include "mass_kernel.h"

}  // namespace

const MassKernels kPortableMass = {weights_of, sums_of, count_from, deviation_of};

}  // namespace packlight
