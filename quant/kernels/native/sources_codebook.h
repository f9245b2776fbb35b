// Sources of the formats whose quants are entries of a grid. Byte diagrams: quant/formats/iquants.py.
//
// All of a block is looked up when its source is made: entries are of more weights than a vector's 4, and what an index
// is made of serves several. Weights of every such format are d * sc * q with odd sc; an offset makes their q unsigned,
// and a minimum takes it back.

template <Type kType_, int kSub_, int kDepth_, int kOffset_ = grid_offset(kType_)>
struct SourceGrid : Panel256<kSub_, kDepth_, false> {
  static constexpr int kOffset = kOffset_;
  Ints mins(int p) const { return this->sc[p]; }

  // Vector v of elements 32 * run .. 32 * run + 31.
  void put(int run, int v, Ints quants) { store(this->q + kLanes * (32 * run + 4 * v), quants); }

  // All of them, with signs in the 32 bits of each lane.
  void put_signed(const Entries<kType_>& entries, int run, Ints signs) {
    Ints v[8];
    look_up<kType_>(entries, run, v);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) put(run, i, mirrored(v[i], 2 * kOffset, bytes_of(signs, i / 2), four_bits(i % 2)));
  }

  void set_scale(Floats scale) { this->d = scale, this->dmin = times(scale, splat_float(kOffset)); }
  static Ints odd(Ints s) { return shl16<1>(s) | splat16(1); }
  static Ints scales_of_words(Ints first, Ints second) { return odd(shr32<28>(first) | shl32<16>(shr32<28>(second))); }
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

// d (qs[4] word:u32)[8]
struct SourceIQ2XXS : SourceGrid<IQ2_XXS, 32, 1> {  // 2 * 86 * 127 = 21844
  explicit SourceIQ2XXS(const uint8_t* b) {
    const Entries<IQ2_XXS> entries(b);
    set_scale(times(halves(b), splat_float(0.125f)));
    const uint8_t* words = field_at(b, 2);
    for (int p = 0; p < 4; ++p) sc[p] = scales_of_words(unit(words, 4 * p + 1), unit(words, 4 * p + 3));
#pragma GCC unroll 1
    for (int run = 0; run < 8; ++run) put_signed(entries, run, signs_of_word(unit(words, 2 * run + 1)));
  }
};

// d qs[32]:u16 scales[8]
struct SourceIQ2XS : SourceGrid<IQ2_XS, 16, 1> {
  explicit SourceIQ2XS(const uint8_t* b) {
    const Entries<IQ2_XS> entries(b);
    set_scale(times(halves(b), splat_float(0.125f)));
#pragma GCC unroll 1
    for (int run = 0; run < 8; ++run) {
      sc[run] = odd(nibble_pair(widen_u8_32(field_at(b, 66 + run))));
      const Ints first = unit(field_at(b, 2), 2 * run), second = unit(field_at(b, 2), 2 * run + 1);
      const Ints sevens = shr16<9>(first) | shl16<8>(shr16<9>(second));  // of groups 0, 2, 1, 3
      put_signed(entries, run, shuffle(with_parity(sevens), bytes16(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15)));
    }
  }
};

// d qs[32] signs[32] qh[8] scales[8]
struct SourceIQ2S : SourceGrid<IQ2_S, 16, 1> {
  explicit SourceIQ2S(const uint8_t* b) {
    const Entries<IQ2_S> entries(b);
    set_scale(times(halves(b), splat_float(0.125f)));
#pragma GCC unroll 1
    for (int run = 0; run < 8; ++run) {
      sc[run] = odd(nibble_pair(widen_u8_32(field_at(b, 74 + run))));
      put_signed(entries, run, unit(field_at(b, 34), run));
    }
  }
};

// d qs[64] words[8]:u32
struct SourceIQ3XXS : SourceGrid<IQ3_XXS, 32, 1> {  // 2 * 124 * 127 = 31496
  explicit SourceIQ3XXS(const uint8_t* b) {
    const Entries<IQ3_XXS> entries(b);
    set_scale(times(halves(b), splat_float(0.25f)));
    const uint8_t* words = field_at(b, 66);
    for (int p = 0; p < 4; ++p) sc[p] = scales_of_words(unit(words, 2 * p), unit(words, 2 * p + 1));
#pragma GCC unroll 1
    for (int run = 0; run < 8; ++run) put_signed(entries, run, signs_of_word(unit(words, run)));
  }
};

// d qs[64] qh[8] signs[32] scales[4]
struct SourceIQ3S : SourceGrid<IQ3_S, 32, 4> {  // 2 * 4 * 30 * 127 = 30480
  explicit SourceIQ3S(const uint8_t* b) {
    const Entries<IQ3_S> entries(b);
    set_scale(halves(b));
    for (int p = 0; p < 4; ++p) sc[p] = odd(nibble_pair(widen_u8_32(field_at(b, 106 + p))));
#pragma GCC unroll 1
    for (int run = 0; run < 8; ++run) put_signed(entries, run, unit(field_at(b, 74), run));
  }
};

// d qs[32] qh[8]:u16. Where qh has its highest bit - 1/8 is added, elsewhere 1/8: the minimum is 9 or 7 times sc.
struct SourceIQ1S : SourceGrid<IQ1_S, 32, 8> {  // 2 * 8 * 16 * 127 = 32512
  Ints mins(int p) const { return mn[p]; }
  explicit SourceIQ1S(const uint8_t* b) {
    const Entries<IQ1_S> entries(b);
    d = times(halves(b), splat_float(0.125f)), dmin = d;
#pragma GCC unroll 1
    for (int p = 0; p < 4; ++p) {
      const Ints low = widen_u16_32(field_at(b, 34 + 4 * p)), high = widen_u16_32(field_at(b, 36 + 4 * p));
      sc[p] = odd((shr32<12>(low) | shl32<4>(high)) & splat16(7));
      const Ints less = sar16<15>(low | shl32<16>(high));
      mn[p] = sub16(shl16<3>(sc[p]), sub16(sc[p] ^ less, less));
    }
#pragma GCC unroll 1
    for (int run = 0; run < 8; ++run) {
      Ints v[8];
      look_up<IQ1_S>(entries, run, v);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) put(run, i, v[i]);
    }
  }
};

// qs[32] qh[16] scales[4]:u16. A quant is that of IQ1_S and 2 for 1/8, 0 for - 1/8, so one more is its offset.
struct SourceIQ1M : SourceGrid<IQ1_M, 16, 4, grid_offset(IQ1_M) + 1> {
  explicit SourceIQ1M(const uint8_t* b) {
    const Entries<IQ1_M> entries(b);
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
    }
#pragma GCC unroll 1
    for (int run = 0; run < 8; ++run) {
      const Ints qh = widen_u16_32(field_at(b, 32 + 2 * run));  // nibbles D_hhh
      Ints v[8];
      look_up<IQ1_M>(entries, run, v);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const Ints less = bytes_with(bytes_of(qh, i / 4), splat8(i / 2 % 2 ? 0x80 : 0x08));
        put(run, i, add8(add8(v[i], splat8(2)), add8(less, less)));
      }
    }
  }
};

inline Multiply find_codebook(Type type) {
  switch (type) {
    case IQ2_XXS: return multiply<IQ2_XXS, SourceIQ2XXS, Panel256<32, 1, false>>;
    case IQ2_XS: return multiply<IQ2_XS, SourceIQ2XS, Panel256<16, 1, false>>;
    case IQ2_S: return multiply<IQ2_S, SourceIQ2S, Panel256<16, 1, false>>;
    case IQ3_XXS: return multiply<IQ3_XXS, SourceIQ3XXS, Panel256<32, 1, false>>;
    case IQ3_S: return multiply<IQ3_S, SourceIQ3S, Panel256<32, 4, false>>;
    case IQ1_S: return multiply<IQ1_S, SourceIQ1S, Panel256<32, 8, false>>;
    case IQ1_M: return multiply<IQ1_M, SourceIQ1M, Panel256<16, 4, false>>;
    default: return nullptr;
  }
}
