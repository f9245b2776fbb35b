// What stands between a feed-forward's two products, and a router's scores: elementwise, and sums of one row.
#ifndef PACKLIGHT_ACTIVATION_H_
#define PACKLIGHT_ACTIVATION_H_

#include <cstdint>

namespace packlight {

// The numbers are those of native_experts.KINDS.
enum class Activation : int64_t { swiglu = 0, geglu = 1, gelu = 2, relu2 = 3, swiglu_oai = 4 };

constexpr bool is_gated(Activation kind) { return kind != Activation::gelu && kind != Activation::relu2; }

// One instruction set's functions, of `count` numbers. What comes out of a number does not depend on where it lies.
// y may be what is read.
struct ActivationKernels {
  void (*activate)(Activation kind, const float* gate, const float* up, int64_t count, float* y);
  void (*sigmoid)(const float* x, int64_t count, float* y);
  void (*softmax)(const float* x, int64_t count, float* y);
};

extern const ActivationKernels kPortableActivations;
#if defined(__x86_64__)
extern const ActivationKernels kAvx2Activations, kAvx512Activations;
#endif

}  // namespace packlight

#endif  // PACKLIGHT_ACTIVATION_H_
