// Activations and routers' scores with AVX2.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#include "activation.h"

#include "avx2_begin.h"

namespace packlight {
namespace {

#include "floats_avx2.h"
#include "exp2.h"
#include "activation_kernel.h"

}  // namespace

const ActivationKernels kAvx2Activations = {activate, sigmoid, softmax};

}  // namespace packlight

#include "avx2_end.h"

#endif  // defined(__x86_64__)
