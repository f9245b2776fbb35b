// Entries of a grid, with NEON. Included inside a namespace and target, after vectors_neon.h.

// The two entries of each row that a lane of `index` names as int16: 4 vectors of 4 weights, of IQ3's short ones 2.
template <Type kType>
inline void look_up(Ints index, Ints* v) {
  constexpr int kWords = grid_width(kType) / 4;
  uint16_t at[2 * kLanes];
  store(at, index);
#pragma GCC unroll 4
  for (int i = 0; i < 2 * kWords; ++i) {
    uint8_t words[4 * kLanes];
    for (int r = 0; r < kLanes; ++r) {
      std::memcpy(words + 4 * r, grid_of<kType>.values + 4 * (kWords * at[2 * r + i / kWords] + i % kWords), 4);
    }
    v[i] = load(words);
  }
}
