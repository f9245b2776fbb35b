// Entries of 8 weights by one load each, with AVX2 or AVX-512. Included inside a namespace and target.

// Entry i of a run of every row: v[0] gets weights 0..3, v[1] 4..7.
template <Type kType, int i>
inline void load_entries(const Numbers<kType>& numbers, int run, Ints* v) {
  __m128i two[kLanes / 2];
#pragma GCC unroll 8
  for (int r = 0; r < kLanes / 2; ++r) {
    const __m128i first = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(numbers.template entry<i>(run, 2 * r)));
    const double* second = reinterpret_cast<const double*>(numbers.template entry<i>(run, 2 * r + 1));
    two[r] = _mm_castpd_si128(_mm_loadh_pd(_mm_castsi128_pd(first), second));
  }
  halves_of_entries(two, v);
}

template <Type kType>
inline void load_eights(const Numbers<kType>& numbers, int run, Ints* v) {
  load_entries<kType, 0>(numbers, run, v);
  load_entries<kType, 1>(numbers, run, v + 2);
  load_entries<kType, 2>(numbers, run, v + 4);
  load_entries<kType, 3>(numbers, run, v + 6);
}
