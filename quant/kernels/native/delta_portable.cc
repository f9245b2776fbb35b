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
constexpr int kTall = 4, kWide = 4, kRow = 8;
#else
constexpr int kTall = 4, kWide = 2, kRow = 4;
#endif

#include "delta_kernel.h"

}  // namespace

void remember_portable(const Head& head, float* space) { remember(head, space); }

}  // namespace packlight
