// Activations and routers' scores with AVX-512.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#include "activation.h"

#include "avx512_begin.h"

namespace packlight {
namespace {

#include "floats_avx512.h"
#include "exp2.h"
#include "activation_kernel.h"

}  // namespace

const ActivationKernels kAvx512Activations = {activate, sigmoid, softmax};

}  // namespace packlight

#include "avx512_end.h"

#endif  // defined(__x86_64__)
