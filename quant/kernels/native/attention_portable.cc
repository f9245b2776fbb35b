// Attention on any CPU, in vectors of 4 that GCC and Clang map to NEON, SSE2 or scalars.

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "attention.h"

namespace packlight {
namespace {

#include "floats_portable.h"

#if defined(__aarch64__)  // 32 registers
constexpr int kStrip = 8;
#else
constexpr int kStrip = 4;
#endif
using Bits = uint32_t __attribute__((vector_size(16)));

inline Bits words(const uint16_t* p) {
  uint16_t __attribute__((vector_size(8))) halves;
  std::memcpy(&halves, p, sizeof halves);
  return __builtin_convertvector(halves, Bits);
}
inline Floats from_f16(Bits half) {
  const Bits body = (half & 0x7FFF) << 13;
  // Subnormals: m * 2^-24 is 2^-14 * (1 + m / 1024) - 2^-14, which no CPU setting flushes.
  const Bits tiny = (Bits)((Floats)(body + (113u << 23)) - splat(0x1p-14f));
  const Bits normal = body + (112u << 23), special = body + (224u << 23);
  const Bits value = body < (0x0400u << 13) ? tiny : body < (0x7C00u << 13) ? normal : special;
  return (Floats)(value | (half & 0x8000) << 16);
}
inline Floats load_f16(const uint16_t* p) { return from_f16(words(p)); }
inline Floats load_bf16(const uint16_t* p) { return (Floats)(words(p) << 16); }

using Ints = int32_t __attribute__((vector_size(16)));
inline Ints load_ints(const void* p) {
  Ints x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline Ints splat_int(int32_t x) { return Ints{x, x, x, x}; }
inline Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }
inline Floats load_int8(const uint8_t* p) {
  int8_t __attribute__((vector_size(4))) bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, Floats);
}
constexpr int kShift = 0;
using Keys = Ints;
inline Keys keyed(Ints words) { return words; }
#if defined(__aarch64__)
inline Ints dot4(Keys key, Ints x, Ints sum) {
  const int8x16_t a = (int8x16_t)key, b = (int8x16_t)x;
  const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
  const int32x4_t high = vpaddlq_s16(vmull_high_s8(a, b));
  return sum + (Ints)vpaddq_s32(low, high);
}
#else
inline Ints dot4(Keys key, Ints x, Ints sum) {
  for (int shift = 24; shift >= 0; shift -= 8) sum += ((key << shift) >> 24) * ((x << shift) >> 24);
  return sum;
}
#endif

constexpr int kMostFew = 2;  // 4 rows fill the lanes
inline float largest(Floats x) {
  float most = x[0];
  for (int i = 1; i < kLanes; ++i) most = most > x[i] ? most : x[i];
  return most;
}

template <KvType kType>
inline void halves_of(const uint32_t* line, Floats& first, Floats& second) {
  Bits x;
  std::memcpy(&x, line, sizeof x);
  first = kType == KvType::f16 ? from_f16(x & 0xFFFF) : (Floats)(x << 16);
  second = kType == KvType::f16 ? from_f16(x >> 16) : (Floats)(x & 0xFFFF0000);
}

inline void transpose_words(const uint8_t* keys, int64_t pitch, uint32_t* to) {
  for (int i = 0; i < kLanes; ++i) {
    for (int word = 0; word < kLanes; ++word) std::memcpy(to + word * kLanes + i, keys + i * pitch + 4 * word, 4);
  }
}

#include "attention_kernel.h"

}  // namespace

void attend_portable(const Block& block, float* space, const Partial& result) { attend(block, space, result); }

}  // namespace packlight
