// AVX2: one octet block times the activations of kM tokens. Included inside avx2's namespace and target.

// 4 activations to every lane: they meet the same 4 columns of 8 rows.
inline __m256i spread(const void* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}

// For each row the sums of products of neighbouring bytes, as int16. A maddubs takes unsigned times signed: signed
// weights give it their magnitude, and their sign to the activations.
template <bool kSigned>
inline __m256i products(__m256i w, __m256i magnitude, __m256i x) {
  if constexpr (kSigned) return _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w));
  return _mm256_maddubs_epi16(w, x);
}

// One of a pair's two int16 to both halves of each lane.
template <int kWhich>
inline __m256i half_of_pair(__m256i pair) {
  constexpr char a = 2 * kWhich, b = a + 1;
  const __m128i order = _mm_setr_epi8(a, b, a, b, a + 4, b + 4, a + 4, b + 4,  //
                                      a + 8, b + 8, a + 8, b + 8, a + 12, b + 12, a + 12, b + 12);
  return _mm256_shuffle_epi8(pair, both(order));
}

// total[m] += scale * (quants of sub-block `sub` . x[m]); kI is sub % kInner.
template <class S, int kM, int kI>
inline void add_sub_block(const S& source, int outer, const int8_t* const* x, __m256i scale, __m256i* total) {
  const int first = (outer * S::kInner + kI) * S::kSub;
#pragma GCC unroll 8
  for (int g = 0; g < S::kSub / 4; g += S::kDepth) {
    __m256i part[kM];
#pragma GCC unroll 8
    for (int v = g; v < g + S::kDepth; ++v) {
      const __m256i w = source.template load<kI>(outer, v);
      const __m256i magnitude = S::kSigned ? _mm256_abs_epi8(w) : w;
#pragma GCC unroll 4
      for (int m = 0; m < kM; ++m) {
        const __m256i p = products<S::kSigned>(w, magnitude, spread(x[m] + first + 4 * v));
        part[m] = v == g ? p : _mm256_add_epi16(part[m], p);
        // Keeps each sum where it is written. GCC 12 otherwise makes all products first and spills them: a third of
        // the speed.
        asm volatile("" : "+x"(part[m]));
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) total[m] = _mm256_add_epi32(total[m], _mm256_madd_epi16(part[m], scale));
  }
}

template <class S, int kM, int... kI>
inline void add_sub_blocks(const S& source, int outer, const int8_t* const* x, __m256i* total,
                           std::integer_sequence<int, kI...>) {
  (add_sub_block<S, kM, kI>(source, outer, x, half_of_pair<kI % 2>(source.scales((outer * S::kInner + kI) / 2)), total),
   ...);
}

// acc[m] += the block's 8 rows . x's tokens `token` + m, as f32.
template <class S, int kM>
inline void add_block(const S& source, const Activations& x, int64_t token, int64_t b, __m256* acc) {
  const int64_t blocks = x.width / S::kBlock;
  const int8_t* q[kM];
  __m256i total[kM];
#pragma GCC unroll 4
  for (int m = 0; m < kM; ++m) {
    q[m] = x.q + (token + m) * x.width + b * S::kBlock;
    total[m] = _mm256_setzero_si256();
  }
  if constexpr (S::kBlock == 32) {
    add_sub_block<S, kM, 0>(source, 0, q, _mm256_set1_epi16(1), total);
  } else {
#pragma GCC unroll 1
    for (int outer = 0; outer < S::kOuter; ++outer) {
      add_sub_blocks<S, kM>(source, outer, q, total, std::make_integer_sequence<int, S::kInner>());
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < kM; ++m) {
    const int64_t at = (token + m) * blocks + b;
    const __m256 d = _mm256_set1_ps(x.d[at]);
    acc[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total[m]), _mm256_mul_ps(source.d, d), acc[m]);
    if constexpr (S::kBlock == 32) {
      if constexpr (S::kOffset) acc[m] = _mm256_fmadd_ps(source.m, _mm256_set1_ps(x.d_sum[at]), acc[m]);
    } else if constexpr (S::kMins) {
      const int16_t* sums = S::kSub == 16 ? x.sums[at].by16 : x.sums[at].by32;
      __m256i minimum = _mm256_setzero_si256();
#pragma GCC unroll 8
      for (int p = 0; p < S::kPairs; ++p) {
        minimum = _mm256_add_epi32(minimum, _mm256_madd_epi16(source.mins(p), spread(sums + 2 * p)));
      }
      acc[m] = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(minimum), _mm256_mul_ps(source.dmin, d), acc[m]);
    }
  }
}

// An octet block unpacked in memory, for many tokens: a source whose loads are plain. One type, and so one compiled
// kernel, for all formats that are alike once unpacked.
template <int kSub_, int kDepth_, bool kSigned_>
struct alignas(32) Panel256 {
  static constexpr int kBlock = 256, kSub = kSub_, kDepth = kDepth_, kInner = 2, kOuter = 128 / kSub;
  static constexpr int kPairs = 128 / kSub, kChunk = 4;  // 4 of them are 12 KB: with 4 tokens' x they stay in L1
  static constexpr bool kSigned = kSigned_, kMins = !kSigned;
  uint8_t q[2048];
  __m256i sc[kPairs], mn[kPairs];
  __m256 d, dmin;

  __m256i scales(int p) const { return sc[p]; }
  __m256i mins(int p) const { return mn[p]; }
  template <int kI>
  __m256i load(int outer, int v) const { return at(q + 32 * ((2 * outer + kI) * (kSub / 4) + v)); }

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
    uint8_t* to = q + 8 * kSub * (outer * S::kInner + kI);
#pragma GCC unroll 8
    for (int v = 0; v < kSub / 4; ++v) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + 32 * v), source.template load<kI>(outer, v));
    }
  }
};

template <int kDepth_, bool kSigned_, bool kOffset_>
struct alignas(32) Panel32 {
  static constexpr int kBlock = 32, kSub = 32, kDepth = kDepth_, kOuter = 1, kInner = 1, kChunk = 32;
  static constexpr bool kSigned = kSigned_, kOffset = kOffset_;
  uint8_t q[256];
  __m256 d, m;

  template <int kI>
  __m256i load(int, int v) const { return at(q + 32 * v); }

  template <class S>
  void fill(const S& source) {
    d = source.d;
    if constexpr (kOffset) m = source.m;
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(q + 32 * v), source.template load<0>(0, v));
    }
  }
};
