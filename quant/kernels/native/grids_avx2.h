// Entries of a grid, with AVX2. Included inside a namespace and target, after grids_words.h.

// Two 8-byte entries in each of 4: the first 4 bytes of all 8 rows, and the last.
inline void halves_of_entries(const __m128i* two, Ints* v) {
  const __m256 a = _mm256_castsi256_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(two[0]), two[2], 1));
  const __m256 b = _mm256_castsi256_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(two[1]), two[3], 1));
  v[0] = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88));
  v[1] = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xDD));
}

#include "grids_x86.h"

template <Type kType, int i>
inline int32_t word_of(const Numbers<kType>& numbers, int run, int row) {
  int32_t word;
  std::memcpy(&word, numbers.template entry<i>(run, row), 4);
  return word;
}

template <Type kType, int... i>
inline void load_fours(const Numbers<kType>& numbers, int run, Ints* v, std::integer_sequence<int, i...>) {
  const auto& n = numbers;
  ((v[i] = _mm256_setr_epi32(word_of<kType, i>(n, run, 0), word_of<kType, i>(n, run, 1), word_of<kType, i>(n, run, 2),
                             word_of<kType, i>(n, run, 3), word_of<kType, i>(n, run, 4), word_of<kType, i>(n, run, 5),
                             word_of<kType, i>(n, run, 6), word_of<kType, i>(n, run, 7))),
   ...);
}

template <Type kType>
using Entries = Numbers<kType>;

// Elements 32 * run .. 32 * run + 31 of every row, without their signs: 8 vectors.
template <Type kType>
inline void look_up(const Numbers<kType>& numbers, int run, Ints* v) {
  if constexpr (grid_width(kType) == 8) load_eights<kType>(numbers, run, v);
  else load_fours<kType>(numbers, run, v, std::make_integer_sequence<int, 8>());
}
