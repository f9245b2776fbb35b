// What a kernel of Mamba-2 is given: one head's tokens and what it remembers.
#ifndef PACKLIGHT_MAMBA2_H_
#define PACKLIGHT_MAMBA2_H_

#include <cstdint>

namespace packlight {

constexpr int64_t kChannels = 16;  // channels of a head are a multiple of it: of every instruction set's vector

struct ScanHead {
  const float* x;          // (tokens, channels), a token's `stride` behind the one before
  const float *b, *c;      // (tokens, states), `shared_stride` apart
  const float* fade;       // (tokens), `heads` apart: logarithm of what is left of the memory
  float* memory;           // (states, channels)
  float* out;              // (tokens, channels), `stride` apart
  int64_t stride, shared_stride, heads, tokens, states, channels;
};

// Each is compiled for one instruction set; call it only where that is present.
using Scan = void (*)(const ScanHead& head);

void scan_portable(const ScanHead& head);
#if defined(__x86_64__)
void scan_avx2(const ScanHead& head);
void scan_avx512(const ScanHead& head);
#endif

}  // namespace packlight

#endif  // PACKLIGHT_MAMBA2_H_
