// Entries of a grid, with AVX2. Included inside a namespace and target, after vectors_avx2.h.

// Two 8-byte entries in each of 4: the first 4 bytes of all 8 rows, and the last.
inline void halves_of_entries(const __m128i* two, Ints* v) {
  const __m256 a = _mm256_castsi256_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(two[0]), two[2], 1));
  const __m256 b = _mm256_castsi256_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(two[1]), two[3], 1));
  v[0] = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88));
  v[1] = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xDD));
}

#include "grids_x86.h"

inline int32_t word_at(const int8_t* values, int index) {
  int32_t word;
  std::memcpy(&word, values + 4 * index, 4);
  return word;
}

// The two entries of each row that a lane of `index` names as int16: 4 vectors of 4 weights, of IQ3's short ones 2.
template <Type kType>
inline void look_up(Ints index, Ints* v) {
  if constexpr (grid_width(kType) == 8) {
    load_eights<kType>(index, v);
  } else {
    alignas(32) uint16_t at[2 * kLanes];
    store(at, index);
    const int8_t* t = grid_of<kType>.values;
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const uint16_t* r = at + i;
      v[i] = _mm256_setr_epi32(word_at(t, r[0]), word_at(t, r[2]), word_at(t, r[4]), word_at(t, r[6]), word_at(t, r[8]),
                               word_at(t, r[10]), word_at(t, r[12]), word_at(t, r[14]));
    }
  }
}
