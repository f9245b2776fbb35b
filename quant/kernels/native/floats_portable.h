// Vectors of 4 floats, which GCC and Clang map to NEON, SSE2 or scalars. Included inside a file's namespace, after
// <cstring> and, for ARM, <arm_neon.h>.

constexpr int kLanes = 4;
using Floats = float __attribute__((vector_size(16)));

inline Floats splat(float x) { return Floats{x, x, x, x}; }
inline Floats load(const float* p) {
  Floats x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline void store(float* p, Floats x) { std::memcpy(p, &x, sizeof x); }
#if defined(__aarch64__)
inline Floats fused(Floats a, Floats b, Floats c) {
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
#else
inline Floats fused(Floats a, Floats b, Floats c) { return a * b + c; }
#endif
inline Floats maximum(Floats a, Floats b) { return a > b ? a : b; }  // b where one is NaN
