// Blocks without integer scales, of kLanes rows or of kG such groups, times the activations of kM tokens: what block.h
// is for the others. Included inside a namespace and target, after dot_*.h.
//
// A source gives unsigned quants of which kZero means 0, in kSteps steps of kInner vectors, and kTail vectors more:
//
//   load<n>(step), place<n>(step)   vector n of a step, and which of the block's activations meet it
//   kBlock == 256: weight = scale(0) * (q - kZero), and x has one scale for all
//   kStep == 32:   the same of 64 or 128, with a scale of x for each step
//   kStep == 16:   weight = scale(step) * (q - kZero), with a scale of x for two steps
//
// All before the scales is exact. GCC 12 calls what it is not made to inline, with its vectors in memory.

template <class S, int kG, int kM, int kI>
[[gnu::always_inline]] inline void add_vector(const S* source, int step, const int8_t* const* x, Ints (*part)[kM]) {
  const int place = S::template place<kI>(step);
  Ints w[kG];
#pragma GCC unroll 2
  for (int g = 0; g < kG; ++g) w[g] = source[g].template load<kI>(step);
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    const Ints four = spread(x[m] + place);
#pragma GCC unroll 2
    for (int g = 0; g < kG; ++g) {
      part[g][m] = with_products(part[g][m], w[g], four);
      keep(part[g][m]);
    }
  }
}

// part[g][m] = start[m] + quants of a step . x[m].
template <class S, int kG, int kM, int... kI>
[[gnu::always_inline]] inline void add_step(const S* source, int step, const int8_t* const* x, const Ints* start,
                                            Ints (*part)[kM], std::integer_sequence<int, kI...>) {
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 2
    for (int g = 0; g < kG; ++g) part[g][m] = begun(start[m]);
  }
  (add_vector<S, kG, kM, kI>(source, step, x, part), ...);
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 2
    for (int g = 0; g < kG; ++g) part[g][m] = ended(part[g][m], start[m]);
  }
}

template <class S, int kG, int kM, int kVectors>
[[gnu::always_inline]] inline void add_to_total(const S* source, int step, const int8_t* const* x, Ints (*total)[kM]) {
  Ints part[kG][kM], none[kM];
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) none[m] = zero();
  add_step<S, kG, kM>(source, step, x, none, part, std::make_integer_sequence<int, kVectors>());
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 2
    for (int g = 0; g < kG; ++g) total[g][m] = add32(total[g][m], part[g][m]);
  }
}

template <class S, int kG, int kM>
inline void add_block256(const S* source, const Activations& x, int64_t token, int64_t b, Floats (*acc)[kM]) {
  const int64_t blocks = x.width / 256;
  const int8_t* q[kM];
  Ints total[kG][kM];
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    q[m] = x.q + (token + m) * x.width + b * 256;
    const Ints start = splat32(-S::kZero * x.sums[(token + m) * blocks + b].all);
#pragma GCC unroll 2
    for (int g = 0; g < kG; ++g) total[g][m] = start;
  }
#pragma GCC unroll 1
  for (int step = 0; step < S::kSteps; ++step) add_to_total<S, kG, kM, S::kInner>(source, step, q, total);
  if constexpr (S::kTail) add_to_total<S, kG, kM, S::kTail>(source, S::kSteps, q, total);
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    const Floats d = splat_float(x.d[(token + m) * blocks + b]);
#pragma GCC unroll 2
    for (int g = 0; g < kG; ++g) acc[g][m] = fused(to_floats(total[g][m]), times(source[g].scale(0), d), acc[g][m]);
  }
}

// product[g][m] = the integers of a step, of a block whose x has a scale for 32.
template <class S, int kG, int kM>
[[gnu::always_inline]] inline void multiply_step(const S* source, const Activations& x, int64_t token, int64_t b,
                                                 int step, Floats (*product)[kM]) {
  const int8_t* q[kM];
  Ints part[kG][kM], start[kM];
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    q[m] = x.q + (token + m) * x.width + b * S::kBlock;
    start[m] = spread(x.start + (token + m) * (x.width / S::kStep) + b * S::kSteps + step);
  }
  add_step<S, kG, kM>(source, step, q, start, part, std::make_integer_sequence<int, S::kInner>());
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 2
    for (int g = 0; g < kG; ++g) product[g][m] = to_floats(part[g][m]);
  }
}

template <class S, int kG, int kM>
inline void add_block32(const S* source, const Activations& x, int64_t token, int64_t b, Floats (*acc)[kM]) {
  Floats sum[kG][kM];  // of a block with one scale
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 2
    for (int g = 0; g < kG; ++g) sum[g][m] = zero_floats();
  }
#pragma GCC unroll 1
  for (int run = 0; run < S::kBlock / 32; ++run) {
    Floats product[kG][kM], other[kG][kM];
    multiply_step<S, kG, kM>(source, x, token, b, run * (32 / S::kStep), product);
    if constexpr (S::kStep == 16) multiply_step<S, kG, kM>(source, x, token, b, 2 * run + 1, other);
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      const Floats d = splat_float(x.d[(token + m) * (x.width / 32) + b * (S::kBlock / 32) + run]);
#pragma GCC unroll 2
      for (int g = 0; g < kG; ++g) {
        if constexpr (S::kStep == 16) {
          const Floats first = times(product[g][m], source[g].scale(2 * run));
          acc[g][m] = fused(fused(other[g][m], source[g].scale(2 * run + 1), first), d, acc[g][m]);
        } else {
          sum[g][m] = fused(product[g][m], d, sum[g][m]);
        }
      }
    }
  }
  if constexpr (S::kStep == 32) {
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 2
      for (int g = 0; g < kG; ++g) acc[g][m] = fused(sum[g][m], source[g].scale(0), acc[g][m]);
    }
  }
}

// acc[g][m] += the block's rows of group g . x's tokens `token` + m, as f32.
template <class S, int kG, int kM>
inline void add_block(const S* source, const Activations& x, int64_t token, int64_t b, Floats (*acc)[kM]) {
  if constexpr (S::kBlock == 256) add_block256<S, kG, kM>(source, x, token, b, acc);
  else add_block32<S, kG, kM>(source, x, token, b, acc);
}

// A block of kLanes rows unpacked in memory, for many tokens, its quants in the order of x.
template <int kBlock_, int kStep_, int kZero_, int kScales>
struct alignas(64) PanelSmall {
  static constexpr int kBlock = kBlock_, kStep = kStep_, kZero = kZero_;
  static constexpr int kSteps = kBlock / kStep, kInner = kStep / 4, kTail = 0;
  static constexpr int kChunk = 32 * 256 / (kLanes * kBlock);  // as in block.h
  uint8_t q[kBlock * kLanes];
  Floats scales[kScales];

  Floats scale(int step) const { return scales[kScales == 1 ? 0 : step]; }
  template <int kI>
  static constexpr int place(int step) { return kStep * step + 4 * kI; }
  template <int kI>
  Ints load(int step) const { return unit(q, kInner * step + kI); }

  template <class S>
  void fill(const S& source) {
    for (int i = 0; i < kScales; ++i) scales[i] = source.scale(i);
#pragma GCC unroll 1
    for (int step = 0; step < S::kSteps; ++step) {
      fill_step(source, step, std::make_integer_sequence<int, S::kInner>());
    }
    fill_step(source, S::kSteps, std::make_integer_sequence<int, S::kTail>());
  }
  template <class S, int... kI>
  void fill_step(const S& source, [[maybe_unused]] int step, std::integer_sequence<int, kI...>) {
    (store(q + kLanes * S::template place<kI>(step), source.template load<kI>(step)), ...);
  }
};
