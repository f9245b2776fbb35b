// Entries of a grid, with AVX-512: those of up to 1024 entries come from registers as 16-bit codes, 32 entries at a time.
// Included inside a namespace and target, after grids_words.h.

inline __m512 joined(__m128i a, __m128i b, __m128i c, __m128i d) {
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(c), d, 1);
  return _mm512_castsi512_ps(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
}

// Two 8-byte entries in each of 8: the first 4 bytes of all 16 rows, and the last.
inline void halves_of_entries(const __m128i* two, Ints* v) {
  const __m512 a = joined(two[0], two[2], two[4], two[6]), b = joined(two[1], two[3], two[5], two[7]);
  v[0] = _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88));
  v[1] = _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xDD));
}

#include "grids_x86.h"

template <int kEntries>
inline Ints codes_at(const uint16_t* codes, Ints index) {
  if constexpr (kEntries == 64) {
    return _mm512_permutex2var_epi16(load(codes), index, load(codes + 32));
  } else {
    constexpr int kHalf = kEntries / 2;
    const Ints low = codes_at<kHalf>(codes, index), high = codes_at<kHalf>(codes + kHalf, index);
    return _mm512_mask_blend_epi16(_mm512_test_epi16_mask(index, splat16(kHalf)), low, high);
  }
}

// A code in bytes kFirst and kFirst + 1 of each lane, twice over.
template <int kFirst>
inline Ints twice(Ints codes) {
  constexpr char a = kFirst, b = kFirst + 1;
  return shuffle(codes, bytes16(a, b, a, b, a + 4, b + 4, a + 4, b + 4,  //
                                a + 8, b + 8, a + 8, b + 8, a + 12, b + 12, a + 12, b + 12));
}

// Byte shuffles ignore what is in bits 4 to 6 of an index, and bit 7 of these codes is 0.
inline Ints four_of_four(Ints code, Ints levels) {
  return shuffle(levels, _mm512_mask_blend_epi16(0xAAAAAAAA, code, shr16<4>(code)));
}

// Two weights in the low fields of bytes, two in the next ones.
template <int kRight>
inline Ints four_of_eight(Ints code, Ints levels) {
  return shuffle(levels, (kRight ? shr16<kRight>(code) : code) & splat32(0x0C0C0303));
}

template <Type kType, int p>
inline void look_up_pair(const uint8_t* b, int run, Ints* v) {
  const Grid& grid = grid_of<kType>;
  const uint8_t* l = grid.levels;
  const Ints codes = codes_at<grid_entries(kType)>(grid.codes, numbers<kType, p>(b, run));
  if constexpr (grid_width(kType) == 4) {
    const Ints levels = bytes16(l[0], l[1], l[2], l[3], l[4], l[5], l[6], l[7], 0, 0, 0, 0, 0, 0, 0, 0);
    v[2 * p] = four_of_four(twice<0>(codes), levels);
    v[2 * p + 1] = four_of_four(twice<2>(codes), levels);
  } else {
    const Ints levels = bytes16(l[0], l[1], l[2], l[3], l[1], 0, 0, 0, l[2], 0, 0, 0, l[3], 0, 0, 0);
    const Ints first = twice<0>(codes), second = twice<2>(codes);
    v[4 * p] = four_of_eight<0>(first, levels), v[4 * p + 1] = four_of_eight<4>(first, levels);
    v[4 * p + 2] = four_of_eight<0>(second, levels), v[4 * p + 3] = four_of_eight<4>(second, levels);
  }
}

// The packed bytes of a block, for numbers in vectors.
template <Type kType>
struct Packed {
  const uint8_t* b;
  explicit Packed(const uint8_t* b) : b(b) {}
};

template <Type kType>
using Entries = std::conditional_t<grid_entries(kType) <= 1024, Packed<kType>, Numbers<kType>>;

// Elements 32 * run .. 32 * run + 31 of every row, without their signs: 8 vectors.
template <Type kType>
inline void look_up(const Entries<kType>& entries, int run, Ints* v) {
  if constexpr (grid_entries(kType) > 1024) {
    load_eights<kType>(entries, run, v);
  } else {
    look_up_pair<kType, 0>(entries.b, run, v);
    look_up_pair<kType, 1>(entries.b, run, v);
    if constexpr (grid_width(kType) == 4) {
      look_up_pair<kType, 2>(entries.b, run, v);
      look_up_pair<kType, 3>(entries.b, run, v);
    }
  }
}
