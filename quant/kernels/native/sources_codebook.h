// Sources of the formats whose quants are entries of a grid. Byte diagrams: quant/formats/iquants.py.
//
// All of a block is looked up when its source is made: entries are of more weights than a vector's 4, and what an index
// is made of serves several. Weights of every such format are d * sc * q with odd sc and signed q (IQ1: 8 times its own).

template <int kSub_, int kDepth_>
struct SourceGrid : Panel256<kSub_, kDepth_, true> {
  // Sub-block `run` of 32 elements as multipliers.
  void put(int run, int v, Ints quants) { store(this->q + kLanes * (32 * run + 4 * v), multiplier<true>(quants)); }

  // The same from magnitudes, and signs in the 32 bits of each lane.
  void put_signed(int run, const Ints* magnitudes, Ints signs) {
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) put(run, v, negative_with(magnitudes[v], bytes_of(signs, v / 2), four_bits(v % 2)));
  }

  void set_scale(Floats scale) { this->d = scale, this->dmin = zero_floats(); }
  static Ints odd(Ints s) { return shl16<1>(s) | splat16(1); }
  // Both nibbles of the low byte of each lane as a pair.
  static Ints nibble_pair(Ints v) { return (v & splat32(15)) | shl32<16>(shr32<4>(v)); }

  // Byte i of each lane to all of its bytes.
  static Ints bytes_of(Ints v, int i) {
    return shuffle(v, add8(bytes16(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12), splat8(i)));
  }
  // One bit for each byte of a lane: of its low nibble or of its high one.
  static Ints four_bits(int high) { return splat32(high ? static_cast<int>(0x80402010) : 0x08040201); }
};

// The eighth sign of seven in each byte makes their number even.
inline Ints with_parity(Ints sevens) {
  const Ints folded = (sevens ^ shr16<4>(sevens)) & splat8(15);
  return sevens | shuffle(bytes16(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0), folded);
}

// Signs of the word ssss_DDDDDDD_CCCCCCC_BBBBBBB_AAAAAAA.
inline Ints signs_of_word(Ints word) {
  return with_parity((word & splat32(0x7F)) | (shl32<1>(word) & splat32(0x7F00)) |
                     (shl32<2>(word) & splat32(0x7F0000)) | (shl32<3>(word) & splat32(0x7F000000)));
}

// Bits kAt .. of each lane's low half to the bits above the bytes of a pair: `kBits` to one, the next to the other.
template <int kAt, int kBits>
inline Ints high_bits(Ints v) {
  constexpr int kMask = (1 << kBits) - 1;
  const Ints first = shr32<kAt>(v) & splat32(kMask), second = shr32<kAt + kBits>(v) & splat32(kMask);
  return shl32<8>(first) | shl32<24>(second);
}

// d (qs[4] word:u32)[8]
struct SourceIQ2XXS : SourceGrid<32, 2> {  // 2 * 2 * 43 * 127 = 21844
  explicit SourceIQ2XXS(const uint8_t* b) {
    set_scale(times(halves(b), splat_float(0.125f)));
    const uint8_t* words = field_at(b, 2);
#pragma GCC unroll 1
    for (int p = 0; p < 4; ++p) {
      const Ints low = unit(words, 4 * p + 1), high = unit(words, 4 * p + 3);
      sc[p] = odd(shr32<28>(low) | shl32<16>(shr32<28>(high)));
      fill(2 * p, unit(words, 4 * p), low);
      fill(2 * p + 1, unit(words, 4 * p + 2), high);
    }
  }
  void fill(int run, Ints qs, Ints word) {
    Ints index[2], v[8];
    pairs_of_quad(qs, index);
    look_up<IQ2_XXS>(index[0], v);
    look_up<IQ2_XXS>(index[1], v + 4);
    put_signed(run, v, signs_of_word(word));
  }
};

// d qs[32]:u16 scales[8]
struct SourceIQ2XS : SourceGrid<16, 2> {
  explicit SourceIQ2XS(const uint8_t* b) {
    set_scale(times(halves(b), splat_float(0.125f)));
#pragma GCC unroll 1
    for (int run = 0; run < 8; ++run) {
      sc[run] = odd(nibble_pair(widen_u8_32(field_at(b, 66 + run))));
      const Ints first = unit(field_at(b, 2), 2 * run), second = unit(field_at(b, 2), 2 * run + 1);
      Ints v[8];
      look_up<IQ2_XS>(first & splat16(511), v);
      look_up<IQ2_XS>(second & splat16(511), v + 4);
      const Ints sevens = shr16<9>(first) | shl16<8>(shr16<9>(second));  // of groups 0, 2, 1, 3
      put_signed(run, v, shuffle(with_parity(sevens), bytes16(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15)));
    }
  }
};

// d qs[32] signs[32] qh[8] scales[8]
struct SourceIQ2S : SourceGrid<16, 2> {
  explicit SourceIQ2S(const uint8_t* b) {
    set_scale(times(halves(b), splat_float(0.125f)));
#pragma GCC unroll 1
    for (int run = 0; run < 8; ++run) {
      sc[run] = odd(nibble_pair(widen_u8_32(field_at(b, 74 + run))));
      const Ints qh = widen_u8_32(field_at(b, 66 + run));
      Ints index[2], v[8];
      pairs_of_quad(unit(field_at(b, 2), run), index);
      look_up<IQ2_S>(index[0] | high_bits<0, 2>(qh), v);
      look_up<IQ2_S>(index[1] | high_bits<4, 2>(qh), v + 4);
      put_signed(run, v, unit(field_at(b, 34), run));
    }
  }
};

// d qs[64] words[8]:u32
struct SourceIQ3XXS : SourceGrid<32, 2> {  // 2 * 2 * 62 * 127 = 31496
  explicit SourceIQ3XXS(const uint8_t* b) {
    set_scale(times(halves(b), splat_float(0.25f)));
    const uint8_t* words = field_at(b, 66);
#pragma GCC unroll 1
    for (int p = 0; p < 4; ++p) {
      const Ints low = unit(words, 2 * p), high = unit(words, 2 * p + 1);
      sc[p] = odd(shr32<28>(low) | shl32<16>(shr32<28>(high)));
      fill(b, 2 * p, low);
      fill(b, 2 * p + 1, high);
    }
  }
  void fill(const uint8_t* b, int run, Ints word) {
    Ints index[4], v[8];
    pairs_of_quad(unit(field_at(b, 2), 2 * run), index);
    pairs_of_quad(unit(field_at(b, 2), 2 * run + 1), index + 2);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) look_up<IQ3_XXS>(index[i], v + 2 * i);
    put_signed(run, v, signs_of_word(word));
  }
};

// d qs[64] qh[8] signs[32] scales[4]
struct SourceIQ3S : SourceGrid<32, 8> {  // 2 * 8 * 15 * 127 = 30480
  explicit SourceIQ3S(const uint8_t* b) {
    set_scale(halves(b));
    for (int p = 0; p < 4; ++p) sc[p] = odd(nibble_pair(widen_u8_32(field_at(b, 106 + p))));
#pragma GCC unroll 1
    for (int run = 0; run < 8; ++run) {
      const Ints qh = widen_u8_32(field_at(b, 66 + run));
      Ints index[4], v[8];
      pairs_of_quad(unit(field_at(b, 2), 2 * run), index);
      pairs_of_quad(unit(field_at(b, 2), 2 * run + 1), index + 2);
      look_up<IQ3_S>(index[0] | high_bits<0, 1>(qh), v);
      look_up<IQ3_S>(index[1] | high_bits<2, 1>(qh), v + 2);
      look_up<IQ3_S>(index[2] | high_bits<4, 1>(qh), v + 4);
      look_up<IQ3_S>(index[3] | high_bits<6, 1>(qh), v + 6);
      put_signed(run, v, unit(field_at(b, 74), run));
    }
  }
};

// Where `v` has the bit: -1, elsewhere 1, which beside IQ1's values times 8 is their - 1/8 or + 1/8.
inline Ints delta(Ints v, int bit) { return bytes_with(v, splat8(bit)) | splat8(1); }

// d qs[32] qh[8]:u16
struct SourceIQ1S : SourceGrid<32, 8> {  // 2 * 8 * 9 * 127 = 18288
  explicit SourceIQ1S(const uint8_t* b) {
    set_scale(times(halves(b), splat_float(0.125f)));
#pragma GCC unroll 1
    for (int p = 0; p < 4; ++p) {
      const Ints low = widen_u16_32(field_at(b, 34 + 4 * p)), high = widen_u16_32(field_at(b, 36 + 4 * p));
      sc[p] = odd((shr32<12>(low) | shl32<4>(high)) & splat16(7));
      fill(b, 2 * p, low);
      fill(b, 2 * p + 1, high);
    }
  }
  void fill(const uint8_t* b, int run, Ints qh) {
    Ints index[2], v[8];
    pairs_of_quad(unit(field_at(b, 2), run), index);
    look_up<IQ1_S>(index[0] | high_bits<0, 3>(qh), v);
    look_up<IQ1_S>(index[1] | high_bits<6, 3>(qh), v + 4);
    const Ints eighth = delta(bytes_of(qh, 1), 0x80);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) put(run, i, add8(v[i], eighth));
  }
};

// qs[32] qh[16] scales[4]:u16
struct SourceIQ1M : SourceGrid<16, 4> {
  explicit SourceIQ1M(const uint8_t* b) {
    uint16_t part[4][kLanes], scale[kLanes];
    std::memcpy(part, field_at(b, 48), sizeof part);
    for (int r = 0; r < kLanes; ++r) {
      scale[r] = static_cast<uint16_t>(part[0][r] >> 12 | (part[1][r] >> 8 & 0xF0) | (part[2][r] >> 4 & 0xF00) |
                                       (part[3][r] & 0xF000));
    }
    set_scale(times(halves(reinterpret_cast<const uint8_t*>(scale)), splat_float(0.125f)));
#pragma GCC unroll 1
    for (int p = 0; p < 4; ++p) {
      const Ints four = widen_u16_32(field_at(b, 48 + 2 * p));
      sc[2 * p] = odd((four | shl32<13>(four)) & splat16(7));
      sc[2 * p + 1] = odd((shr32<6>(four) | shl32<7>(four)) & splat16(7));
      fill(b, 2 * p);
      fill(b, 2 * p + 1);
    }
  }
  void fill(const uint8_t* b, int run) {
    const Ints qh = widen_u16_32(field_at(b, 32 + 2 * run));  // nibbles D_hhh
    Ints index[2], v[8];
    pairs_of_quad(unit(b, run), index);
    look_up<IQ1_S>(index[0] | (shl32<8>(qh & splat32(7)) | shl32<20>(qh & splat32(0x70))), v);
    look_up<IQ1_S>(index[1] | (qh & splat32(0x700)) | shl32<12>(qh & splat32(0x7000)), v + 4);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) put(run, i, add8(v[i], delta(bytes_of(qh, i / 4), i / 2 % 2 ? 0x80 : 0x08)));
  }
};

inline Multiply find_codebook(Type type) {
  switch (type) {
    case IQ2_XXS: return multiply<IQ2_XXS, SourceIQ2XXS, Panel256<32, 2, true>>;
    case IQ2_XS: return multiply<IQ2_XS, SourceIQ2XS, Panel256<16, 2, true>>;
    case IQ2_S: return multiply<IQ2_S, SourceIQ2S, Panel256<16, 2, true>>;
    case IQ3_XXS: return multiply<IQ3_XXS, SourceIQ3XXS, Panel256<32, 2, true>>;
    case IQ3_S: return multiply<IQ3_S, SourceIQ3S, Panel256<32, 8, true>>;
    case IQ1_S: return multiply<IQ1_S, SourceIQ1S, Panel256<32, 8, true>>;
    case IQ1_M: return multiply<IQ1_M, SourceIQ1M, Panel256<16, 4, true>>;
    default: return nullptr;
  }
}
