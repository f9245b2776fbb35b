// AVX2: octet blocks (layout "rows8") to vectors. Included inside avx2's namespace and target.
//
// Everywhere a 32-bit lane is a row, lane r row r of the octet; a vector of quants is 4 consecutive weights of 8 rows,
// a vector of scales two int16, of sub-blocks 2p and 2p + 1, of 8 rows. Each struct is one format's "source":
//
//   kSub      elements under one integer scale (a 32-element block has one, of 1)
//   kDepth    vectors whose products with int8 activations add up in int16: 2 * kDepth * max q * 127 < 2^15
//   kSigned   quants are int8 rather than uint8
//   kMins     there are minimums
//   kOuter x kInner sub-blocks, kInner even (1 of 1 in a 32-element block);
//   load<inner>(outer, v): vector v < kSub / 4 of sub-block outer * kInner + inner
//   256: scales(p), mins(p), p < 128 / kSub; d, dmin:  weight = d * sc * q - dmin * mn
//   32:  d, m:                                         weight = d * q + m
//
// The integers are exact in all of this, so every path gives what portable.cc gives but for the order of f32 sums.

inline __m256i at(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline __m128i at16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline __m256 halves(const uint8_t* p) { return _mm256_cvtph_ps(at16(p)); }  // the float16 of 8 rows
inline __m256i bytes(int b) { return _mm256_set1_epi8(static_cast<char>(b)); }
inline __m256i both(__m128i v) { return _mm256_broadcastsi128_si256(v); }

// Bit fields of each byte: `kRight` > 0 shifts right, < 0 left; the mask drops what crosses from the other byte.
template <int kRight>
inline __m256i field(__m256i v, int mask) {
  if constexpr (kRight > 0) v = _mm256_srli_epi16(v, kRight);
  if constexpr (kRight < 0) v = _mm256_slli_epi16(v, -kRight);
  return _mm256_and_si256(v, bytes(mask));
}

// Bytes kFirst and kFirst + 1 of each lane as its two int16.
template <int kFirst, bool kSigned>
inline __m256i pair_of_bytes(__m256i v) {
  constexpr char a = kFirst, b = kFirst + 1, z = -128;
  if constexpr (kSigned) {
    const __m128i order = _mm_setr_epi8(z, a, z, b, z, a + 4, z, b + 4, z, a + 8, z, b + 8, z, a + 12, z, b + 12);
    return _mm256_srai_epi16(_mm256_shuffle_epi8(v, both(order)), 8);
  }
  const __m128i order = _mm_setr_epi8(a, z, b, z, a + 4, z, b + 4, z, a + 8, z, b + 8, z, a + 12, z, b + 12, z);
  return _mm256_shuffle_epi8(v, both(order));
}

// Four bytes per lane, scales of sub-blocks 4i .. 4i + 3, to two pairs.
template <bool kSigned = false>
inline void pairs_of_quad(__m256i v, __m256i* pairs) {
  pairs[0] = pair_of_bytes<0, kSigned>(v);
  pairs[1] = pair_of_bytes<2, kSigned>(v);
}

template <int kSub_, int kDepth_, bool kSigned_, int kOuter_, int kInner_>
struct Source256 {
  static constexpr int kBlock = 256, kSub = kSub_, kDepth = kDepth_, kOuter = kOuter_, kInner = kInner_;
  static constexpr int kPairs = 128 / kSub;
  static constexpr bool kSigned = kSigned_, kMins = !kSigned;  // of the super-block formats only IQ4_XS is signed
  __m256i sc[kPairs], mn[kPairs];
  __m256 d, dmin;
  __m256i scales(int p) const { return sc[p]; }
  __m256i mins(int p) const { return mn[p]; }
};

// Functions, not constants: those would be made when the library loads, with AVX2 instructions, on any CPU.
inline __m256i iq4_values(__m256i q) {
  const __m128i table = _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
  return _mm256_shuffle_epi8(both(table), q);
}

inline __m256i fp4_values(__m256i q) {
  return _mm256_shuffle_epi8(both(_mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)), q);
}

// Nibbles of a run of 32 weights in 16 bytes, 4 units: low nibbles are weights 0..15, high ones 16..31.
inline __m256i run_nibbles(const uint8_t* qs, int v) {
  return v < 4 ? field<0>(at(qs + 32 * v), 15) : field<4>(at(qs + 32 * (v - 4)), 15);
}
