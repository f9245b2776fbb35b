// One block of kLanes rows, or of kG such groups, times the activations of kM tokens. Included inside a namespace and
// target, after dot_*.h.

template <class S, int kG, int kM, int... kI>
inline void add_sub_blocks(const S* source, int outer, const int8_t* const* x, const int16_t* const* sums,
                           Ints (*total)[kM], std::integer_sequence<int, kI...>) {
  (add_sub_block<S, kG, kM, kI>(source, outer, x, sums, total), ...);
}

// acc[g][m] += the block's rows of group g . x's tokens `token` + m, as f32.
template <class S, int kG, int kM>
inline void add_block(const S* source, const Activations& x, int64_t token, int64_t b, Floats (*acc)[kM]) {
  const int64_t blocks = x.width / S::kBlock;
  const int8_t* q[kM];
  const int16_t* sums[kM];
  Ints total[kG][kM];
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    const int64_t at = (token + m) * blocks + b;
    q[m] = x.q + (token + m) * x.width + b * S::kBlock;
    sums[m] = S::kBlock == 32 ? x.sum + at : S::kSub == 16 ? x.sums[at].by16 : x.sums[at].by32;
#pragma GCC unroll 2
    for (int g = 0; g < kG; ++g) total[g][m] = zero();
  }
#pragma GCC unroll 1
  for (int outer = 0; outer < S::kOuter; ++outer) {
    add_sub_blocks<S, kG, kM>(source, outer, q, sums, total, std::make_integer_sequence<int, S::kInner>());
  }
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    const int64_t at = (token + m) * blocks + b;
    const Floats d = splat_float(x.d[at]);
#pragma GCC unroll 2
    for (int g = 0; g < kG; ++g) {
      acc[g][m] = fused(to_floats(total[g][m]), times(source[g].d, d), acc[g][m]);
      if constexpr (S::kBlock == 32) {
        if constexpr (S::kOffset) acc[g][m] = fused(source[g].m, splat_float(x.d_sum[at]), acc[g][m]);
      } else if constexpr (S::kMins) {
        Ints minimum = zero();
#pragma GCC unroll 8
        for (int p = 0; p < S::kPairs; ++p) {
          minimum = pairs_dot(source[g].mins(p), spread(sums[m] + 2 * p), minimum);
        }
        acc[g][m] = fused_minus(to_floats(minimum), times(source[g].dmin, d), acc[g][m]);
      }
    }
  }
}

// A block of kLanes rows unpacked in memory, for many tokens: a source whose loads are plain. One type, and so one
// compiled kernel, for all formats that are alike once unpacked.
template <int kSub_, int kDepth_, bool kSigned_>
struct alignas(64) Panel256 {
  static constexpr int kBlock = 256, kSub = kSub_, kDepth = kDepth_, kInner = 2, kOuter = 128 / kSub;
  static constexpr int kPairs = 128 / kSub;
  static constexpr int kChunk = 32 / kLanes;  // a few KB for each group: with 4 tokens' x they stay in L1
  static constexpr bool kSigned = kSigned_, kMins = !kSigned, kFolded = true;
  uint8_t q[256 * kLanes];
  Ints sc[kPairs], mn[kPairs];
  Floats d, dmin;

  Ints scales(int p) const { return sc[p]; }
  Ints mins(int p) const { return mn[p]; }
  template <int kI>
  Ints load(int outer, int v) const { return unit(q, (2 * outer + kI) * (kSub / 4) + v); }

  template <class S>
  void fill(const S& source) {
    for (int p = 0; p < kPairs; ++p) {
      sc[p] = source.scales(p);
      if constexpr (kMins) mn[p] = source.mins(p);
    }
    d = source.d, dmin = source.dmin;
#pragma GCC unroll 1
    for (int outer = 0; outer < S::kOuter; ++outer) {
      fill_quants(source, outer, std::make_integer_sequence<int, S::kInner>());
    }
  }
  template <class S, int... kI>
  void fill_quants(const S& source, int outer, std::integer_sequence<int, kI...>) {
    (fill_sub_block<S, kI>(source, outer), ...);
  }
  template <class S, int kI>
  void fill_sub_block(const S& source, int outer) {
    uint8_t* to = q + kLanes * kSub * (outer * S::kInner + kI);
#pragma GCC unroll 8
    for (int v = 0; v < kSub / 4; ++v) {
      const Ints w = source.template load<kI>(outer, v);
      store(to + 4 * kLanes * v, S::kFolded ? w : multiplier<kSigned>(w));
    }
  }
};

template <int kDepth_, bool kSigned_, bool kOffset_>
struct alignas(64) Panel32 {
  static constexpr int kBlock = 32, kSub = 32, kDepth = kDepth_, kOuter = 1, kInner = 1;
  static constexpr int kChunk = 256 / kLanes;
  static constexpr bool kSigned = kSigned_, kOffset = kOffset_, kFolded = true;
  uint8_t q[32 * kLanes];
  Floats d, m;

  template <int kI>
  Ints load(int, int v) const { return unit(q, v); }

  template <class S>
  void fill(const S& source) {
    d = source.d;
    if constexpr (kOffset) m = source.m;
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) store(q + 4 * kLanes * v, multiplier<kSigned>(source.template load<0>(0, v)));
  }
};
