// Which kernels run for an instruction set, and the stacks of packed matrices that they are given.
#ifndef PACKLIGHT_KERNELS_H_
#define PACKLIGHT_KERNELS_H_

#include <cstdint>
#include <string>

#include "activation.h"
#include "grids.h"
#include "isa.h"
#include "weights.h"
#include "xla/ffi/api/ffi.h"

namespace packlight {

inline const Kernels& kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512bf16) return kAvx512Bf16;
  if (isa == Isa::avx512) return kAvx512;
  if (isa == Isa::avx2) return kAvx2;
#elif defined(__aarch64__)
  if (isa == Isa::neon) return kNeon;
#endif
  return kPortable;
}

inline const ActivationKernels& activation_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return kAvx512Activations;
  if (isa == Isa::avx2) return kAvx2Activations;
#endif
  return kPortableActivations;
}

// Packed matrices of one shape, one after the other.
struct Stacked {
  Weights first;
  int64_t bytes, count;  // of a matrix, of them

  Weights operator[](int64_t i) const {
    Weights w = first;
    w.data += i * bytes;
    return w;
  }
};

// Fills `stack` with what `blocks` holds on all its leading axes: a loop over layers passes the whole stack, because XLA
// would copy a slice of it for the call. Or what is wrong with it.
inline std::string read_stack(const Kernels& kernels, int64_t type, int64_t lanes, xla::ffi::AnyBuffer blocks,
                              int64_t width, int64_t out, Stacked* stack) {
  const Format* format = find_format(type);
  if (!format) return "no native kernel for ggml type " + std::to_string(type);
  if (!has_its_grid(format->type)) return "nobody has set the grid of ggml type " + std::to_string(type);
  if (lanes != 1 && lanes != kernels.lanes && &kernels != &kPortable) {
    return "rows interleaved by " + std::to_string(lanes) + ", and these kernels take " + std::to_string(kernels.lanes);
  }
  const auto whole = blocks.dimensions();
  if (blocks.element_type() != xla::ffi::U8 || whole.size() < 3) return "the packed weights are no stack of matrices";
  const auto shape = whole.last(3);
  if (shape[2] != format->bytes * lanes || shape[1] * format->elements != width) {
    return "the packed weights do not fit x or their format";
  }
  if (shape[0] != (out + lanes - 1) / lanes) return "the result's shape does not fit the weights";
  const int64_t bytes = shape[0] * shape[1] * shape[2];
  const uint8_t* data = static_cast<const uint8_t*>(blocks.untyped_data());
  int64_t count = 1;
  for (size_t axis = 0; axis + 3 < whole.size(); ++axis) count *= whole[axis];
  *stack = {{format, static_cast<int>(lanes), out, shape[1], data}, bytes, count};
  return "";
}

}  // namespace packlight

#endif  // PACKLIGHT_KERNELS_H_
