// Each format's packed block of kLanes rows as vectors, written in vectors_*.h. Included inside a namespace and target.
//
// The bytes are in layout "rows8" or "rows16" (weights.h). Everywhere a 32-bit lane is a row; a vector of quants is 4
// consecutive weights of every row, a vector of scales two int16, of sub-blocks 2p and 2p + 1. Each struct is one
// format's "source":
//
//   kSub      elements under one integer scale (a 32-element block has one, of 1)
//   kDepth    vectors whose products with int8 activations add up in int16: 2 * kDepth * max q * 127 < 2^15
//   kSigned   quants are int8 rather than uint8
//   kMins     there are minimums (of super-blocks); kOffset  m is not 0 (of 32-element blocks)
//   kFolded   load gives what multiplies (dot_*.h), not the quant
//   kOuter x kInner sub-blocks, kInner even (1 of 1 in a 32-element block);
//   load<inner>(outer, v): vector v < kSub / 4 of sub-block outer * kInner + inner
//   256: scales(p), mins(p), p < 128 / kSub; d, dmin:  weight = d * sc * q - dmin * mn
//   32:  d, m:                                         weight = d * q + m
//
// The integers are exact in all of this, so every path gives what portable.cc gives but for the order of f32 sums.

// Where byte `offset` of the blocks begins, and vector v of a field of 4-byte units.
inline const uint8_t* field_at(const uint8_t* b, int offset) { return b + kLanes * offset; }
inline Ints unit(const uint8_t* field, int v) { return load(field + 4 * kLanes * v); }

// Bit fields of each byte: `kRight` > 0 shifts right, < 0 left; the mask drops what crosses from the other byte.
template <int kRight>
inline Ints bits(Ints v, int mask) {
  if constexpr (kRight > 0) v = shr16<kRight>(v);
  if constexpr (kRight < 0) v = shl16<-kRight>(v);
  return v & splat8(mask);
}

// Bytes kFirst and kFirst + 1 of each lane as its two int16.
template <int kFirst, bool kIsSigned>
inline Ints pair_of_bytes(Ints v) {
  constexpr char a = kFirst, b = kFirst + 1, z = -128;
  if constexpr (kIsSigned) {
    return sar16<8>(shuffle(v, bytes16(z, a, z, b, z, a + 4, z, b + 4, z, a + 8, z, b + 8, z, a + 12, z, b + 12)));
  }
  return shuffle(v, bytes16(a, z, b, z, a + 4, z, b + 4, z, a + 8, z, b + 8, z, a + 12, z, b + 12, z));
}

// Four bytes per lane, scales of sub-blocks 4i .. 4i + 3, to two pairs.
template <bool kIsSigned = false>
inline void pairs_of_quad(Ints v, Ints* pairs) {
  pairs[0] = pair_of_bytes<0, kIsSigned>(v);
  pairs[1] = pair_of_bytes<2, kIsSigned>(v);
}

// Functions, not constants: those would be made when the library loads, with these instructions, on any CPU.
inline Ints iq4_values(Ints q) {
  return shuffle(bytes16(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), q);
}

inline Ints fp4_values(Ints q) {
  return shuffle(bytes16(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12), q);
}

// Nibbles of a run of 32 weights in 16 bytes, 4 units: low nibbles are weights 0..15, high ones 16..31.
inline Ints run_nibbles(const uint8_t* qs, int v) {
  return v < 4 ? bits<0>(unit(qs, v), 15) : bits<4>(unit(qs, v - 4), 15);
}

template <int kSub_, int kDepth_, bool kSigned_, int kOuter_, int kInner_>
struct Source256 {
  static constexpr int kBlock = 256, kSub = kSub_, kDepth = kDepth_, kOuter = kOuter_, kInner = kInner_;
  static constexpr int kPairs = 128 / kSub;
  static constexpr bool kSigned = kSigned_, kMins = !kSigned, kFolded = false;  // of the super-block formats only IQ4_XS is signed
  Ints sc[kPairs], mn[kPairs];
  Floats d, dmin;
  Ints scales(int p) const { return sc[p]; }
  Ints mins(int p) const { return mn[p]; }
};

template <int kDepth_, bool kSigned_, bool kOffset_>
struct Source32 {
  static constexpr int kBlock = 32, kSub = 32, kDepth = kDepth_, kOuter = 1, kInner = 1;
  static constexpr bool kSigned = kSigned_, kOffset = kOffset_, kFolded = false;
  Floats d, m;
  const uint8_t* qs;
};
