// Mamba-2 with AVX-512.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#include "mamba2.h"

#include "avx512_begin.h"

namespace packlight {
namespace {

#include "floats_avx512.h"

constexpr int kRow = 4;

#include "mamba2_kernel.h"

}  // namespace

void scan_avx512(const ScanHead& head) { scan(head); }

}  // namespace packlight

#include "avx512_end.h"

#endif  // defined(__x86_64__)
