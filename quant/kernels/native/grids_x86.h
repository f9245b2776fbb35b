// Entries of 8 weights by one load each, with AVX2 or AVX-512. Included inside a namespace and target, after vectors_*.h.

// Entries `which` (0 or 1) of every row's pair in `index`: v[0] gets weights 0..3, v[1] 4..7.
template <int kWhich>
inline void load_entries(const int8_t* values, const uint16_t* index, Ints* v) {
  __m128i two[kLanes / 2];
#pragma GCC unroll 8
  for (int i = 0; i < kLanes / 2; ++i) {
    const int8_t *a = values + 8 * index[4 * i + kWhich], *b = values + 8 * index[4 * i + 2 + kWhich];
    two[i] = _mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(a)),
                                _mm_loadl_epi64(reinterpret_cast<const __m128i*>(b)));
  }
  halves_of_entries(two, v);
}

template <Type kType>
inline void load_eights(Ints index, Ints* v) {
  alignas(64) uint16_t at[2 * kLanes];
  store(at, index);
  load_entries<0>(grid_of<kType>.values, at, v);
  load_entries<1>(grid_of<kType>.values, at, v + 2);
}
