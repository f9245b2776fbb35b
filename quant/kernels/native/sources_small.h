// Sources of the formats of 1 and 2 bits, of three values, and of NVFP4; block_small.h says what they give. Byte
// diagrams: quant/formats/legacy.py, quant/formats/ternary.py, quant/formats/fp4.py.

template <int kBlock_, int kStep_, int kZero_, int kSteps_, int kInner_, int kTail_ = 0>
struct SourceSmall {
  static constexpr int kBlock = kBlock_, kStep = kStep_, kZero = kZero_;
  static constexpr int kSteps = kSteps_, kInner = kInner_, kTail = kTail_;
  template <int kI>
  static constexpr int place(int step) { return kStep * step + 4 * kI; }
};

// d qs[16]: bit w of byte i of a unit is element 8 i + w, as x is crossed. Quants are 0 and 2.
struct SourceQ10 : SourceSmall<128, 32, kCrossedZero, 4, 8> {
  Floats d;
  const uint8_t* qs;
  explicit SourceQ10(const uint8_t* b) : d(halves(b)), qs(field_at(b, 2)) {}
  Floats scale(int) const { return d; }
  template <int kI>
  Ints load(int step) const { return bits<kI - 1>(unit(qs, step), 2); }
};

// d qs[16]: of two units the even bytes have elements 8 i + w, w < 4, and the odd ones 8 i + 4 + w, as x is crossed.
struct SourceQ20 : SourceSmall<64, 32, kCrossedZero, 2, 8> {
  Floats d;
  const uint8_t* qs;
  explicit SourceQ20(const uint8_t* b) : d(halves(b)), qs(field_at(b, 2)) {}
  Floats scale(int) const { return d; }
  template <int kI>
  Ints load(int step) const {
    const Ints order = bytes16(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15), low = splat32(0xFFFF);
    const Ints a = shuffle(unit(qs, 2 * step), order), b = shuffle(unit(qs, 2 * step + 1), order);
    const Ints four = kI < 4 ? (a & low) | shl32<16>(b) : shr32<16>(a) | (b & splat32(~0xFFFF));
    return bits<kI % 4 * 2>(four, 3);
  }
};

// qs[48] qh[4] d: five digits in base 3 of a byte, each of another run; the four bytes of qh have four.
struct SourceTQ10 : SourceSmall<256, 256, 1, 12, 5, 4> {
  Floats d;
  const uint8_t* qs;
  explicit SourceTQ10(const uint8_t* b) : d(halves(field_at(b, 52))), qs(b) {}
  Floats scale(int) const { return d; }
  template <int kI>
  static constexpr int place(int step) {
    return step < 8 ? 32 * kI + 4 * step : step < 12 ? 160 + 16 * kI + 4 * (step - 8) : 240 + 4 * kI;
  }
  // A byte's first digit is how many of 85 and 170 it exceeds. Times 3, modulo 256, its next digit becomes the first.
  // 128 less, it is signed, as what compares bytes wants it, and three times that is 128 less again.
  template <int kI>
  static Ints rest(Ints v) {
    if constexpr (kI > 0) {
      const Ints before = rest<kI - 1>(v);
      return add8(add8(before, before), before);
    }
    return v;
  }
  template <int kI>
  Ints load(int step) const { return exceeded8<85 - 128, 170 - 128>(rest<kI>(unit(qs, step) ^ splat8(-128))); }
};

// qs[64] d
struct SourceTQ20 : SourceSmall<256, 256, 1, 16, 4> {
  Floats d;
  const uint8_t* qs;
  explicit SourceTQ20(const uint8_t* b) : d(halves(field_at(b, 64))), qs(b) {}
  Floats scale(int) const { return d; }
  template <int kI>
  static constexpr int place(int step) { return step / 8 * 128 + 32 * kI + step % 8 * 4; }
  template <int kI>
  Ints load(int step) const { return bits<2 * kI>(unit(qs, step), 3); }
};

// d[4] qs[32]: quants are 12 more than the integers of the codes.
struct SourceNVFP4 : SourceSmall<64, 16, kHalvedZero, 4, 4> {
  const uint8_t* b;
  explicit SourceNVFP4(const uint8_t* b_) : b(b_) {}
  Floats scale(int step) const { return times(eighths(field_at(b, step)), splat_float(128)); }
  template <int kI>
  Ints load(int step) const {
    const Ints code = bits<kI / 2 * 4>(unit(field_at(b, 4), 2 * step + kI % 2), 15);
    return shuffle(bytes16(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0), code);
  }
};

inline Multiply find_small(Type type) {
  switch (type) {
    case Q1_0: return multiply<Q1_0, SourceQ10, PanelSmall<128, 32, kCrossedZero, 1>>;
    case Q2_0: return multiply<Q2_0, SourceQ20, PanelSmall<64, 32, kCrossedZero, 1>>;
    case TQ1_0: return multiply<TQ1_0, SourceTQ10, PanelSmall<256, 32, 1, 1>>;
    case TQ2_0: return multiply<TQ2_0, SourceTQ20, PanelSmall<256, 32, 1, 1>>;
    case NVFP4: return multiply<NVFP4, SourceNVFP4, PanelSmall<64, 16, kHalvedZero, 4>>;
    default: return nullptr;
  }
}
