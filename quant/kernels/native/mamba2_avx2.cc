// Mamba-2 with AVX2 and FMA.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#include "mamba2.h"

#include "avx2_begin.h"

namespace packlight {
namespace {

#include "floats_avx2.h"

constexpr int kRow = 4;

#include "mamba2_kernel.h"

}  // namespace

void scan_avx2(const ScanHead& head) { scan(head); }

}  // namespace packlight

#include "avx2_end.h"

#endif  // defined(__x86_64__)
