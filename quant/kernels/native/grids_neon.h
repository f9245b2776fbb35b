// Entries of a grid, with NEON. Included inside a namespace and target, after grids_words.h.

template <Type kType, int... v>
inline void load_words(const Numbers<kType>& numbers, int run, int row, uint8_t (*to)[4 * kLanes],
                       std::integer_sequence<int, v...>) {
  constexpr int kWords = grid_width(kType) / 4;
  (std::memcpy(to[v] + 4 * row, numbers.template entry<v / kWords>(run, row) + 4 * (v % kWords), 4), ...);
}

template <Type kType>
using Entries = Numbers<kType>;

// Elements 32 * run .. 32 * run + 31 of every row, without their signs: 8 vectors.
template <Type kType>
inline void look_up(const Numbers<kType>& numbers, int run, Ints* v) {
  uint8_t words[8][4 * kLanes];
  for (int r = 0; r < kLanes; ++r) load_words<kType>(numbers, run, r, words, std::make_integer_sequence<int, 8>());
  for (int i = 0; i < 8; ++i) v[i] = load(words[i]);
}
