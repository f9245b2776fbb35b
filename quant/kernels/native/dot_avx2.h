// AVX2: one sub-block of kLanes rows times the activations of kM tokens. Included inside a namespace and target.

constexpr int kMostTokensInRegisters = 4;
constexpr int kPanelGroups = 1;  // groups of rows that share a load of activations, when unpacked to memory

// What multiplies: a quant as the source gives it.
template <bool kSigned>
inline Ints multiplier(Ints w) { return w; }

// 4 activations to every lane: they meet the same 4 columns of all rows.
inline Ints spread(const void* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return splat32(word);
}

// For each row the sums of products of neighbouring bytes, as int16. A maddubs takes unsigned times signed: signed
// weights give it their magnitude, and their sign to the activations.
template <bool kSigned>
inline Ints products(Ints w, Ints magnitude, Ints x) {
  if constexpr (kSigned) return _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w));
  return _mm256_maddubs_epi16(w, x);
}

// The products of a run of unsigned quants, added up: begun with what they are added to, then each vector, then ended.
// In int16 between: 2 * vectors * max q * 127 < 2^15.
inline Ints begun(Ints) { return zero(); }
inline Ints with_products(Ints part, Ints w, Ints x) { return _mm256_add_epi16(part, _mm256_maddubs_epi16(w, x)); }
inline Ints ended(Ints part, Ints start) { return pairs_dot(part, splat16(1), start); }

// One of a pair's two int16 to both halves of each lane.
template <int kWhich>
inline Ints half_of_pair(Ints pair) {
  constexpr char a = 2 * kWhich, b = a + 1;
  return shuffle(pair, bytes16(a, b, a, b, a + 4, b + 4, a + 4, b + 4,  //
                               a + 8, b + 8, a + 8, b + 8, a + 12, b + 12, a + 12, b + 12));
}

template <class S, int kI>
inline Ints scale_of(const S& source, int outer) {
  if constexpr (S::kBlock == 32) return splat16(1);
  else return half_of_pair<kI % 2>(source.scales((outer * S::kInner + kI) / 2));
}

// total[g][m] += scale * (quants of sub-block kI . x[m]); x and sums (of 32 activations, unused here) are the block's.
template <class S, int kG, int kM, int kI>
inline void add_sub_block(const S* source, int outer, const int8_t* const* x, const int16_t* const*,
                          Ints (*total)[kM]) {
  static_assert(kG == 1);
  const int first = (outer * S::kInner + kI) * S::kSub;
  const Ints scale = scale_of<S, kI>(*source, outer);
#pragma GCC unroll 8
  for (int g = 0; g < S::kSub / 4; g += S::kDepth) {
    Ints part[kM];
#pragma GCC unroll 8
    for (int v = g; v < g + S::kDepth; ++v) {
      const Ints w = source->template load<kI>(outer, v);
      const Ints magnitude = S::kSigned ? _mm256_abs_epi8(w) : w;
#pragma GCC unroll 4
      for (int m = 0; m < kM; ++m) {
        const Ints p = products<S::kSigned>(w, magnitude, spread(x[m] + first + 4 * v));
        part[m] = v == g ? p : _mm256_add_epi16(part[m], p);
        keep(part[m]);
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) {
      total[0][m] = pairs_dot(part[m], scale, total[0][m]);
      keep(total[0][m]);
    }
  }
}
