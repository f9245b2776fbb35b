// A block of f32 numbers to int8, the rounding of llama.cpp's Q8_0 and Q8_K with a full f32 scale.
//
// Per block of 32 or 256 values: d = max |x| / 127, q = round_half_even(x * (127 / max |x|)), both in f32.
// A block with a value that is not finite gets d = NaN, so that the product shows it; a block whose maximum is below
// 2^-100 becomes zeros (127 / max would overflow).
//
// Every instruction set includes this inside its own namespace and target: the loops are written to vectorize.
// native_ops.round_activations is the same arithmetic in jnp; change both or neither.

template <int kBlock>
inline float quantize_block(const float* x, int8_t* q) {
  uint32_t largest = 0;  // of the magnitudes' bits: they order as the floats do, with inf and NaN on top
  for (int i = 0; i < kBlock; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    bits &= 0x7FFFFFFFu;
    largest = bits > largest ? bits : largest;
  }
  float max;
  std::memcpy(&max, &largest, 4);
  if (largest >= 0x7F800000u || max < 0x1p-100f) {
    std::memset(q, 0, kBlock);
    return largest >= 0x7F800000u ? __builtin_nanf("") : 0.0f;
  }
  const float inverse = 127.0f / max;
  for (int i = 0; i < kBlock; ++i) {
    // Adding 1.5 * 2^23 rounds to an integer, ties to even, and leaves it in the low bits: no rounding instruction.
    const float shifted = x[i] * inverse + 12582912.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, 4);
    q[i] = static_cast<int8_t>(bits - 0x4B400000);
  }
  return max / 127.0f;
}
