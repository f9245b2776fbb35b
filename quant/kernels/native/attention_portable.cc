// Attention on any CPU, in vectors of 4 that GCC and Clang map to NEON, SSE2 or scalars.

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>

#include "attention.h"

namespace packlight {
namespace {

#include "floats_portable.h"

#if defined(__aarch64__)  // 32 registers
constexpr int kStrip = 8;
#else
constexpr int kStrip = 4;
#endif
using Bits = uint32_t __attribute__((vector_size(16)));

inline Bits words(const uint16_t* p) { return Bits{p[0], p[1], p[2], p[3]}; }
inline Floats load_bf16(const uint16_t* p) { return (Floats)(words(p) << 16); }
inline Floats load_f16(const uint16_t* p) {
  const Bits half = words(p), body = (half & 0x7FFF) << 13;
  // Subnormals: m * 2^-24 is 2^-14 * (1 + m / 1024) - 2^-14, which no CPU setting flushes.
  const Bits tiny = (Bits)((Floats)(body + (113u << 23)) - splat(0x1p-14f));
  const Bits normal = body + (112u << 23), special = body + (224u << 23);
  const Bits value = body < (0x0400u << 13) ? tiny : body < (0x7C00u << 13) ? normal : special;
  return (Floats)(value | (half & 0x8000) << 16);
}

#include "attention_kernel.h"

}  // namespace

void attend_portable(const Block& block, float* space, const Partial& result) { attend(block, space, result); }

}  // namespace packlight
