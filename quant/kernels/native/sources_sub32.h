// Sources of the super-blocks of 8 sub-blocks of 32 elements. Byte diagrams: quant/formats/kquants.py, quant/formats/iquants.py.

// d dmin scales[12] (qh[32]) qs[128]: the 6-bit scales of all rows at once; see quant/formats/kquants.py for their bits.
template <int kDepth_, int kOuter_, int kInner_>
struct SourceQ45K : Source256<32, kDepth_, false, kOuter_, kInner_> {
  explicit SourceQ45K(const uint8_t* b) {
    const uint8_t* scales = field_at(b, 4);
    const Ints low = unit(scales, 0), mid = unit(scales, 1), high = unit(scales, 2);
    pairs_of_quad(bits<0>(low, 63), this->sc);
    pairs_of_quad(bits<0>(mid, 63), this->mn);
    pairs_of_quad(bits<0>(high, 15) | bits<2>(low, 48), this->sc + 2);
    pairs_of_quad(bits<4>(high, 15) | bits<2>(mid, 48), this->mn + 2);
    this->d = halves(b), this->dmin = halves(field_at(b, 2));
  }
};

struct SourceQ4K : SourceQ45K<8, 4, 2> {  // 2 * 8 * 15 * 127 = 30480
  const uint8_t* qs;
  explicit SourceQ4K(const uint8_t* b) : SourceQ45K(b), qs(field_at(b, 16)) {}
  template <int kNibble>
  Ints load(int i, int v) const { return bits<4 * kNibble>(unit(qs, 8 * i + v), 15); }
};

struct SourceQ5K : SourceQ45K<4, 1, 8> {  // 2 * 4 * 31 * 127 = 31496
  const uint8_t *qh, *qs;
  explicit SourceQ5K(const uint8_t* b) : SourceQ45K(b), qh(field_at(b, 16)), qs(field_at(b, 48)) {}
  template <int kI>
  Ints load(int, int v) const {
    return bits<kI % 2 * 4>(unit(qs, kI / 2 * 8 + v), 15) | bits<kI - 4>(unit(qh, v), 16);
  }
};

// d scales_h:u16 scales_l[4] qs[128]
struct SourceIQ4XS : Source256<32, 1, true, 4, 2> {
  const uint8_t* qs;
  explicit SourceIQ4XS(const uint8_t* b) : qs(field_at(b, 8)) {
    const Ints low = unit(field_at(b, 4), 0), high = widen_u16_32(field_at(b, 2));
    pair<0>(low, high);
    pair<1>(low, high);
    pair<2>(low, high);
    pair<3>(low, high);
    d = halves(b), dmin = zero_floats();
  }
  template <int kP>
  void pair(Ints low, Ints high) {  // nibbles 2p, 2p + 1 of scales_l, bit pairs 2p, 2p + 1 of scales_h
    const Ints fifteen = splat32(15), three = splat32(3);
    const Ints a = shr32<8 * kP>(low) & fifteen, b = shr32<8 * kP + 4>(low) & fifteen;
    const Ints c = shr32<4 * kP>(high) & three, e = shr32<4 * kP + 2>(high) & three;
    sc[kP] = sub16(a | shl32<16>(b) | shl32<4>(c) | shl32<20>(e), splat16(32));
  }
  template <int kI>
  Ints load(int o, int v) const { return iq4_values(run_nibbles(field_at(qs, 16 * (2 * o + kI)), v)); }
};

inline Multiply find_sub32(Type type) {
  switch (type) {
    case Q4_K: return multiply<Q4_K, SourceQ4K, Panel256<32, 8, false>>;
    case Q5_K: return multiply<Q5_K, SourceQ5K, Panel256<32, 4, false>>;
    case IQ4_XS: return multiply<IQ4_XS, SourceIQ4XS, Panel256<32, 1, true>>;
    default: return nullptr;
  }
}
