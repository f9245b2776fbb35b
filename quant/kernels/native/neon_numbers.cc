// Plain numbers with NEON.
#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstring>

#include "weights.h"
#include "workspace.h"

#include "neon_begin.h"

namespace packlight {
namespace {

#include "floats_portable.h"

constexpr int kManyGroups = 4;  // with 6 tokens 24 sums, of 32 registers
inline Floats load_f16(const uint8_t* p) { return (Floats)vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
inline Floats load_bf16(const uint8_t* p) {
  return (Floats)vshlq_n_u32(vmovl_u16(vreinterpret_u16_u8(vld1_u8(p))), 16);
}

#include "numbers.h"
#include "read_numbers.h"

}  // namespace

Multiply neon_numbers(Type type) { return find_numbers(type); }

}  // namespace packlight

#include "neon_end.h"

#endif  // defined(__aarch64__)
