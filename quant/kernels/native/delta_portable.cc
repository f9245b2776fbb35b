// The gated delta net on any CPU.

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>

#include "delta.h"

namespace packlight {
namespace {

#include "floats_portable.h"

#if defined(__aarch64__)  // 32 registers
constexpr int kRow = 8;
#else
constexpr int kRow = 4;
#endif

#include "delta_kernel.h"

}  // namespace

void remember_portable(const Head& head) { remember(head); }

}  // namespace packlight
