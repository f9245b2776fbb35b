// The gated delta net with AVX-512.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#include "delta.h"

#include "avx512_begin.h"

namespace packlight {
namespace {

#include "floats_avx512.h"

constexpr int kRow = 8;

#include "delta_kernel.h"

}  // namespace

void remember_avx512(const Head& head) { remember(head); }

}  // namespace packlight

#include "avx512_end.h"

#endif  // defined(__x86_64__)
