// Powers of 2 of a vector. Included inside each instruction set's namespace and target, which bring Floats, kLanes and
// the few operations on them.

using Words = uint32_t __attribute__((vector_size(4 * kLanes)));

// 2^x for x <= 0, below 1.5 units in the last place (1 with fused multiply-add), exact at 0; 0 below -126.5; NaN stays.
// The polynomial is the minimax one of degree 6 for 2^f, |f| <= 1/2, relative error 2^-29.
inline Floats exp2_of(Floats x) {
  x = maximum(splat(-127.0f), x);
  const Floats rounder = splat(12582912.0f);  // 1.5 * 2^23: the sum's low bits are x rounded
  const Floats shifted = x + rounder;
  const Floats f = x - (shifted - rounder);
  Floats p = splat(0x1.41d334p-13f);
  p = fused(p, f, splat(0x1.5f456ap-10f));
  p = fused(p, f, splat(0x1.3b2dbcp-7f));
  p = fused(p, f, splat(0x1.c6aed4p-5f));
  p = fused(p, f, splat(0x1.ebfbdap-3f));
  p = fused(p, f, splat(0x1.62e430p-1f));
  p = fused(p, f, splat(1.0f));
  return p * (Floats)(((Words)shifted << 23) + (127u << 23));  // x = -127 has the exponent field 0: times 0.0
}
