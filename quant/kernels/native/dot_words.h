// AVX-512 VNNI and NEON: one sub-block of kLanes rows times the activations of kM tokens. Included inside a namespace
// and target.
//
// One instruction multiplies 4 bytes by 4 bytes in each lane and adds them to an int32, so nothing can saturate. Where
// it takes unsigned weights, signed ones have 128 added, which 128 times the sum of the activations takes back.

constexpr int kMostTokensInRegisters = 8;
constexpr int kPanelGroups = 2;  // groups of rows that share a load of activations, when unpacked to memory

template <bool kSigned>
inline Ints multiplier(Ints w) {
  if constexpr (kSigned && kUnsignedWeights) return w ^ splat8(-128);
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
  return sar32<16>(kI % 2 ? pair : shl32<16>(pair));
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
    for (int g = 0; g < kG; ++g) {
      w[g] = source[g].template load<kI>(outer, v);
      if constexpr (!S::kFolded) w[g] = multiplier<S::kSigned>(w[g]);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      const Ints four = spread(x[m] + first + 4 * v);
#pragma GCC unroll 2
      for (int g = 0; g < kG; ++g) {
        const Ints start = S::kSigned && kUnsignedWeights ? splat32(-128 * sums[m][sub]) : zero();
        part[g][m] = dot4(w[g], four, v ? part[g][m] : start);
        keep(part[g][m]);
      }
    }
  }
#pragma GCC unroll 2
  for (int g = 0; g < kG; ++g) {
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      if constexpr (S::kBlock == 32) total[g][m] = part[g][m];
      else total[g][m] = add32(total[g][m], times32(part[g][m], scale_of<S, kI>(source[g], outer)));
    }
  }
}
