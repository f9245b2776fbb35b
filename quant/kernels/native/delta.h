// What a kernel of the gated delta net is given: one head's tokens and what it remembers.
#ifndef PACKLIGHT_DELTA_H_
#define PACKLIGHT_DELTA_H_

#include <cstdint>

namespace packlight {

constexpr int64_t kWidth = 16;  // channels of a head are a multiple of it: of every instruction set's vector

struct Head {
  const float *q, *k;             // (tokens, S), a token's `key_stride` behind the one before
  const float* v;                 // (tokens, S), `value_stride` apart
  const float *beta, *fade;       // (tokens), `stride` apart; fade: logarithm of what is left of the memory
  float* memory;                  // (S, S), from key channels to value channels
  float* out;                     // (tokens, S), `value_stride` apart
  int64_t key_stride, value_stride, stride, tokens, width;
};

// Each is compiled for one instruction set; call it only where that is present.
using Remember = void (*)(const Head& head);

void remember_portable(const Head& head);
#if defined(__x86_64__)
void remember_avx2(const Head& head);
void remember_avx512(const Head& head);
#endif

}  // namespace packlight

#endif  // PACKLIGHT_DELTA_H_
