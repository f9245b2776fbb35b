// Mamba-2 on any CPU.

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>

#include "mamba2.h"

namespace packlight {
namespace {

#include "floats_portable.h"

constexpr int kRow = 4;

#include "mamba2_kernel.h"

}  // namespace

void scan_portable(const ScanHead& head) { scan(head); }

}  // namespace packlight
