// AVX-512 with VNNI: one sub-block of kLanes rows times the activations of kM tokens. Included inside a namespace and
// target.
//
// One instruction multiplies 4 unsigned by 4 signed bytes in each lane and adds them to an int32, so nothing can
// saturate. Signed quants become unsigned by adding 128, which 128 times the sum of the activations takes back.

constexpr int kMostTokensInRegisters = 8;
constexpr int kPanelGroups = 2;  // groups of rows that share a load of activations, when unpacked to memory

template <bool kSigned>
inline Ints multiplier(Ints w) {
  if constexpr (kSigned) return w ^ splat8(-128);
  return w;
}

// 4 activations to every lane: they meet the same 4 columns of all rows.
inline Ints spread(const void* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return splat32(word);
}

template <class S, int kI>
inline Ints scale_of(const S& source, int outer) {
  const Ints pair = source.scales((outer * S::kInner + kI) / 2);
  return kI % 2 ? _mm512_srai_epi32(pair, 16) : _mm512_srai_epi32(shl32<16>(pair), 16);
}

// total[g][m] += scale * (quants of sub-block kI . x[m]); x and sums (of 32 activations) are the block's.
template <class S, int kG, int kM, int kI>
inline void add_sub_block(const S* source, int outer, const int8_t* const* x, const int16_t* const* sums,
                          Ints (*total)[kM]) {
  const int sub = outer * S::kInner + kI, first = sub * S::kSub;
  static_assert(!S::kSigned || S::kSub == 32);
  Ints part[kG][kM];
#pragma GCC unroll 8
  for (int v = 0; v < S::kSub / 4; ++v) {
    Ints w[kG];
#pragma GCC unroll 2
    for (int g = 0; g < kG; ++g) w[g] = S::kFolded ? source[g].template load<kI>(outer, v) : multiplier<S::kSigned>(source[g].template load<kI>(outer, v));
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      const Ints four = spread(x[m] + first + 4 * v);
#pragma GCC unroll 2
      for (int g = 0; g < kG; ++g) {
        const Ints start = S::kSigned ? splat32(-128 * sums[m][sub]) : zero();
        part[g][m] = _mm512_dpbusd_epi32(v ? part[g][m] : start, w[g], four);
        asm volatile("" : "+v"(part[g][m]));  // as written: GCC 12 would spill the products otherwise
      }
    }
  }
#pragma GCC unroll 2
  for (int g = 0; g < kG; ++g) {
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      if constexpr (S::kBlock == 32) total[g][m] = part[g][m];
      else total[g][m] = add32(total[g][m], _mm512_mullo_epi32(part[g][m], scale_of<S, kI>(source[g], outer)));
    }
  }
}
