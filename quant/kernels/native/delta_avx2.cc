// The gated delta net with AVX2 and FMA.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#include "delta.h"

#include "avx2_begin.h"

namespace packlight {
namespace {

#include "floats_avx2.h"

constexpr int kRow = 4;

#include "delta_kernel.h"

}  // namespace

void remember_avx2(const Head& head) { remember(head); }

}  // namespace packlight

#include "avx2_end.h"

#endif  // defined(__x86_64__)
