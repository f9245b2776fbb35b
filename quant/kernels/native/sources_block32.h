// Sources of the formats with blocks of 32 elements. Byte diagrams: quant/formats/legacy.py, quant/formats/iquants.py, quant/formats/fp4.py.

struct SourceQ40 : Source32<8, false, true> {  // d qs[16]
  explicit SourceQ40(const uint8_t* b) { d = halves(b), m = times(d, splat_float(-8)), qs = field_at(b, 2); }
  template <int kI>
  Ints load(int, int v) const { return run_nibbles(qs, v); }
};

struct SourceQ41 : Source32<8, false, true> {  // d m qs[16]
  explicit SourceQ41(const uint8_t* b) { d = halves(b), m = halves(field_at(b, 2)), qs = field_at(b, 4); }
  template <int kI>
  Ints load(int, int v) const { return run_nibbles(qs, v); }
};

// (qh[4] qs[16]): bit j of a lane of qh is the fifth of weight j.
struct SourceQ5 : Source32<4, false, true> {
  template <int kI>
  Ints load(int, int v) const {
    // the byte with this vector's four bits to all bytes of the lane, then one bit each
    const Ints order = add8(bytes16(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12), splat8(v / 2));
    const Ints bit = splat32(v % 2 ? static_cast<int>(0x80402010) : 0x08040201);
    const Ints set = bytes_with(shuffle(unit(qs, 0), order), bit);
    return run_nibbles(field_at(qs, 4), v) | (set & splat8(16));
  }
};

struct SourceQ50 : SourceQ5 {  // d qh[4] qs[16]
  explicit SourceQ50(const uint8_t* b) { d = halves(b), m = times(d, splat_float(-16)), qs = field_at(b, 2); }
};

struct SourceQ51 : SourceQ5 {  // d m qh[4] qs[16]
  explicit SourceQ51(const uint8_t* b) { d = halves(b), m = halves(field_at(b, 2)), qs = field_at(b, 4); }
};

struct SourceQ80 : Source32<1, true, false> {  // d qs[32]; 2 * 128 * 127 = 32512
  explicit SourceQ80(const uint8_t* b) { d = halves(b), qs = field_at(b, 2); }
  template <int kI>
  Ints load(int, int v) const { return unit(qs, v); }
};

struct SourceIQ4NL : Source32<1, true, false> {  // d qs[16]
  explicit SourceIQ4NL(const uint8_t* b) { d = halves(b), qs = field_at(b, 2); }
  template <int kI>
  Ints load(int, int v) const { return iq4_values(run_nibbles(qs, v)); }
};

struct SourceMXFP4 : Source32<8, true, false> {  // e qs[16]; 2 * 8 * 12 * 127 = 24384
  explicit SourceMXFP4(const uint8_t* b) {
    const Ints e = widen_u8_32(b);
    const Ints normal = shl32<23>(sub32(e, splat32(1)));    // 2^(e - 128)
    const Ints tiny = shl32_each(splat32(0x00200000), e);  // for e = 0 and 1
    d = bits_as_floats(where_less32(e, splat32(2), tiny, normal));
    qs = field_at(b, 1);
  }
  template <int kI>
  Ints load(int, int v) const { return fp4_values(run_nibbles(qs, v)); }
};

inline Multiply find_block32(Type type) {
  switch (type) {
    case Q4_0: return multiply<Q4_0, SourceQ40, Panel32<8, false, true>>;
    case Q4_1: return multiply<Q4_1, SourceQ41, Panel32<8, false, true>>;
    case Q5_0: return multiply<Q5_0, SourceQ50, Panel32<4, false, true>>;
    case Q5_1: return multiply<Q5_1, SourceQ51, Panel32<4, false, true>>;
    case Q8_0: return multiply<Q8_0, SourceQ80, Panel32<1, true, false>>;
    case IQ4_NL: return multiply<IQ4_NL, SourceIQ4NL, Panel32<1, true, false>>;
    case MXFP4: return multiply<MXFP4, SourceMXFP4, Panel32<8, true, false>>;
    default: return nullptr;
  }
}
