// Activations and routers' scores on any CPU.

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>

#include "activation.h"

namespace packlight {
namespace {

#include "floats_portable.h"
#include "exp2.h"
#include "activation_kernel.h"

}  // namespace

const ActivationKernels kPortableActivations = {activate, sigmoid, softmax};

}  // namespace packlight
