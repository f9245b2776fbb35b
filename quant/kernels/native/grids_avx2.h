// Entries of a grid, with AVX2. Included inside a namespace and target, after grids_words.h.

// Two 8-byte entries in each of 4: the first 4 bytes of all 8 rows, and the last.
inline void halves_of_entries(const __m128i* two, Ints* v) {
  const __m256 a = _mm256_castsi256_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(two[0]), two[2], 1));
  const __m256 b = _mm256_castsi256_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(two[1]), two[3], 1));
  v[0] = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88));
  v[1] = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xDD));
}

#include "grids_x86.h"

// 16 bytes such that row's entry i of 4 bytes is word row % 4: a blend takes that word and needs no shuffle.
template <Type kType, int i, int row>
inline __m128i around(const Numbers<kType>& numbers, int run) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(numbers.template entry<i>(run, row) - row % 4 * 4));
}

// Rows row .. row + 3. With names for what is blended: some compilers' blends are macros.
template <Type kType, int i, int row>
inline __m128i four_rows(const Numbers<kType>& numbers, int run) {
  const __m128i a = around<kType, i, row>(numbers, run), b = around<kType, i, row + 1>(numbers, run);
  const __m128i c = around<kType, i, row + 2>(numbers, run), d = around<kType, i, row + 3>(numbers, run);
  const __m128i two = _mm_blend_epi32(a, b, 2), three = _mm_blend_epi32(two, c, 4);
  return _mm_blend_epi32(three, d, 8);
}

template <Type kType, int i>
inline Ints all_rows(const Numbers<kType>& numbers, int run) {
  const __m128i low = four_rows<kType, i, 0>(numbers, run), high = four_rows<kType, i, 4>(numbers, run);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

template <Type kType, int... i>
inline void load_fours(const Numbers<kType>& numbers, int run, Ints* v, std::integer_sequence<int, i...>) {
  ((v[i] = all_rows<kType, i>(numbers, run)), ...);
}

template <Type kType>
using Entries = Numbers<kType>;

// Elements 32 * run .. 32 * run + 31 of every row, without their signs: 8 vectors.
template <Type kType>
inline void look_up(const Numbers<kType>& numbers, int run, Ints* v) {
  if constexpr (grid_width(kType) == 8) load_eights<kType>(numbers, run, v);
  else load_fours<kType>(numbers, run, v, std::make_integer_sequence<int, 8>());
}
