// The numbers of a grid's entries. Included inside a namespace and target, after sources.h.

// Bits kAt .. of each lane's low half to the bits above the bytes of a pair: `kBits` to one, the next after kStep to the
// other.
template <int kAt, int kBits, int kStep = kBits>
inline Ints high_bits(Ints v) {
  constexpr int kMask = (1 << kBits) - 1;
  const Ints first = shr32<kAt>(v) & splat32(kMask), second = shr32<kAt + kStep>(v) & splat32(kMask);
  return shl32<8>(first) | shl32<24>(second);
}

// Those of entries 2p and 2p + 1 of elements 32 * run .. 32 * run + 31 of every row, as int16.
template <Type kType, int p>
inline Ints numbers(const uint8_t* b, int run) {
  const uint8_t* qs = field_at(b, kType == IQ1_M ? 0 : 2);
  if constexpr (kType == IQ2_XS) return unit(qs, 2 * run + p) & splat16(511);
  const int at = kType == IQ2_XXS ? 2 * run : grid_width(kType) == 4 ? 2 * run + p / 2 : run;
  const Ints low = pair_of_bytes<p % 2 * 2, false>(unit(qs, at));
  if constexpr (kType == IQ2_S) return low | high_bits<4 * p, 2>(widen_u8_32(field_at(b, 66 + run)));
  if constexpr (kType == IQ3_S) return low | high_bits<2 * p, 1>(widen_u8_32(field_at(b, 66 + run)));
  if constexpr (kType == IQ1_S) return low | high_bits<6 * p, 3>(widen_u16_32(field_at(b, 34 + 2 * run)));
  if constexpr (kType == IQ1_M) return low | high_bits<8 * p, 3, 4>(widen_u16_32(field_at(b, 32 + 2 * run)));
  return low;
}

// For loads of single entries: the numbers of a block, all made and put in memory before the first is used, because a
// load right after such a store costs half as much again.
template <Type kType>
class Numbers {
 public:
  static constexpr int kPairs = 16 / grid_width(kType);  // of a run

  explicit Numbers(const uint8_t* b) {
    for (int run = 0; run < 8; ++run) fill(b, run, std::make_integer_sequence<int, kPairs>());
    asm volatile("" : "+m"(at_));  // or GCC takes each from a vector, by three instructions
  }

  // Where entry i of a run of a row is in the grid.
  template <int i>
  const uint8_t* entry(int run, int row) const {
    const size_t number = at_[run][i / 2][2 * row + i % 2];
    return grid_of<grid_type(kType)>.values + grid_width(kType) * number;
  }

 private:
  template <int... p>
  void fill(const uint8_t* b, int run, std::integer_sequence<int, p...>) {
    (store(at_[run][p], numbers<kType, p>(b, run)), ...);
  }

  alignas(64) uint16_t at_[8][kPairs][2 * kLanes];
};
