// Weights of logits, and what is summed over rows of them: doubles in one order, whatever the instruction set.
#ifndef PACKLIGHT_MASS_H_
#define PACKLIGHT_MASS_H_

#include <cstdint>

#include "isa.h"
#include "ranks.h"

namespace packlight {

// What weights are exponentials of: (logit - best) / temperature, 0 for the best itself and -inf for -inf.
struct Scale {
  float best, temperature = 1.0f;

  float operator()(float x) const {
    const float below = x == -kInfinity ? -kInfinity : x == best ? 0.0f : flushed(x - best);
    return temperature == 1.0f ? below : below / temperature;
  }
};

struct Masses {
  double mass = 0, moment = 0;  // of the weights, and of weights times what they are exponentials of
};

// One instruction set's functions of `count` logits, which they read as `clean` makes them. All give the same bits.
struct MassKernels {
  void (*weights)(const float* x, int64_t count, Scale scale, float* weights);
  // Over the logits that are no less than `least`.
  Masses (*sums)(const float* x, int64_t count, Scale scale, float least, bool with_moment);
  // How many are no less than `least`.
  int64_t (*count_from)(const float* x, int64_t count, float least);
  // The standard deviation of the finite ones, 0 where there are none.
  float (*deviation)(const float* x, int64_t count);
};

extern const MassKernels kPortableMass;
#if defined(__x86_64__)
extern const MassKernels kAvx2Mass;
#endif

inline const MassKernels& mass_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx2 || isa == Isa::avx512) return kAvx2Mass;
#endif
  return kPortableMass;
}

}  // namespace packlight

#endif  // PACKLIGHT_MASS_H_
