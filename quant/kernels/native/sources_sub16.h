// Sources of the super-blocks of 16 sub-blocks of 16 elements. Byte diagrams: quant/formats/kquants.py.

// scales[16] qs[64] d dmin: low nibbles of scales are sc, high ones mn.
struct SourceQ2K : Source256<16, 4, false, 2, 8> {
  const uint8_t* qs;
  explicit SourceQ2K(const uint8_t* b) : qs(field_at(b, 16)) {
    for (int p = 0; p < 8; ++p) {
      const Ints both = widen_u8_16(field_at(b, 2 * p));
      sc[p] = both & splat16(15);
      mn[p] = shr16<4>(both);
    }
    d = halves(field_at(b, 80)), dmin = halves(field_at(b, 82));
  }
  template <int kI>
  Ints load(int h, int v) const { return bits<kI / 2 * 2>(unit(qs, 8 * h + kI % 2 * 4 + v), 3); }
};

// hmask[32] qs[64] scales[12] d. Quants stay 0..7: the 4 that ggml subtracts becomes a minimum of 4 * sc.
struct SourceQ3K : Source256<16, 4, false, 2, 8> {
  const uint8_t *hmask, *qs;
  explicit SourceQ3K(const uint8_t* b) : hmask(b), qs(field_at(b, 32)) {
    const uint8_t* scales = field_at(b, 96);
    const Ints low = unit(scales, 0), mid = unit(scales, 1), high = unit(scales, 2);
    quad<0, -4>(low, high, 0);
    quad<0, -2>(mid, high, 2);
    quad<4, 0>(low, high, 4);
    quad<4, 2>(mid, high, 6);
    d = halves(field_at(b, 108)), dmin = times(d, splat_float(4));
  }
  template <int kNibble, int kHigh>
  void quad(Ints low, Ints high, int p) {
    pairs_of_quad<true>(sub8(bits<kNibble>(low, 15) | bits<kHigh>(high, 48), splat8(32)), sc + p);
  }
  Ints mins(int p) const { return sc[p]; }
  template <int kI>
  Ints load(int h, int v) const {  // sub-block 8 h + kI, kI = 2 j + c
    constexpr int j = kI / 2, c = kI % 2;
    // h's four bits of hmask come down first; a shift that is not a constant costs less than unrolling over h
    const Ints mask = shr16_by(unit(hmask, 4 * c + v), 4 * h);
    return bits<2 * j>(unit(qs, 8 * h + 4 * c + v), 3) | bits<j - 2>(mask, 4);
  }
};

// ql[128] qh[64] scales[16] d. Quants stay 0..63: the 32 that ggml subtracts becomes a minimum of 32 * sc.
struct SourceQ6K : Source256<16, 2, false, 2, 8> {  // 2 * 2 * 63 * 127 = 32004
  const uint8_t *ql, *qh;
  explicit SourceQ6K(const uint8_t* b) : ql(b), qh(field_at(b, 128)) {
    for (int p = 0; p < 8; ++p) sc[p] = widen_i8_16(field_at(b, 192 + 2 * p));
    d = halves(field_at(b, 208)), dmin = times(d, splat_float(32));
  }
  Ints mins(int p) const { return sc[p]; }
  template <int kI>
  Ints load(int h, int v) const {  // sub-block 8 h + kI, kI = 4 n + 2 r + c
    constexpr int n = kI / 4, r = kI / 2 % 2, c = kI % 2;
    const Ints low = bits<4 * n>(unit(ql, 16 * h + 8 * r + 4 * c + v), 15);
    return low | bits<2 * (2 * n + r) - 4>(unit(qh, 8 * h + 4 * c + v), 48);
  }
};

inline Multiply find_sub16(Type type) {
  switch (type) {
    case Q2_K: return multiply<Q2_K, SourceQ2K, Panel256<16, 4, false>>;
    case Q3_K: return multiply<Q3_K, SourceQ3K, Panel256<16, 4, false>>;
    case Q6_K: return multiply<Q6_K, SourceQ6K, Panel256<16, 2, false>>;
    default: return nullptr;
  }
}
