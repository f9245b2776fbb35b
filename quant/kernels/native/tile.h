// Tiles of kLanes rows by many tokens, the same for every format. Included inside a namespace and target, after block.h.

constexpr int64_t kFew = 8;           // tokens for which unpacking to memory does not pay
constexpr int64_t kMostTokens = 128;  // of a tile
constexpr int64_t kTileBytes = 1 << 18;  // int8 activations of a tile, which stay in L2

// Bytes to fetch ahead where a group of rows is one stream.
constexpr int64_t kAhead = 3456;

template <int kUnit>
inline void interleave_units(const uint8_t* const* rows, int from, int to, uint8_t* group) {
  for (int i = from; i < to; i += kUnit) {
    for (int r = 0; r < kLanes; ++r) std::memcpy(group + kLanes * i + r * kUnit, rows[r] + i, kUnit);
  }
}

// One block of a group of kLanes rows, interleaved, from rows in ggml's layout.
template <Type kType>
[[gnu::noinline]] void interleave(const uint8_t* const* rows, uint8_t* group) {
  constexpr const Format& format = *find_format(kType);
  for (const Field& field : format.fields) {
    const int end = field.offset + field.length;
    int i = field.offset;
    if (field.unit == 4) {
      for (; kTransposes && i + 32 <= end; i += 32) {
        for (int r = 0; r < kLanes; r += 8) transpose(rows + r, i, group + kLanes * i + 4 * r, 4 * kLanes);
      }
      interleave_units<4>(rows, i, end, group);
    } else if (field.unit == 2) {
      interleave_units<2>(rows, i, end, group);
    } else {
      interleave_units<1>(rows, i, end, group);
    }
  }
}

// The blocks of one group of kLanes rows, interleaved whatever the weights' layout.
template <Type kType>
class Group {
 public:
  static constexpr int kBytes = find_format(kType)->bytes;

  Group(const Weights& w, int64_t group) : interleaved_(w.lanes > 1), next_(kLanes * w.blocks * kBytes) {
    for (int r = 0; r < kLanes; ++r) {
      const int64_t row = kLanes * group + r;  // past the end: the last row again, and nobody reads the result
      rows_[r] = w.data + (interleaved_ ? kLanes * group : row < w.out ? row : w.out - 1) * w.blocks * kBytes;
    }
  }

  const uint8_t* block(int64_t b) {
    if (interleaved_) {
      const uint8_t* block = rows_[0] + b * kLanes * kBytes;
      fetch(block + kAhead);
      return block;
    }
    // The next group's share: as many streams as rows, of a block each, are too many for the hardware to follow.
    fetch(rows_[0] + next_ + b * kLanes * kBytes);
    const uint8_t* at[kLanes];
    for (int r = 0; r < kLanes; ++r) at[r] = rows_[r] + b * kBytes;
    interleave<kType>(at, buffer_);
    return buffer_;
  }

 private:
  static void fetch(const uint8_t* from) {
    for (int i = 0; i < kLanes * kBytes; i += 64) prefetch(from + i);
  }

  bool interleaved_;
  int64_t next_;  // bytes of a group
  const uint8_t* rows_[kLanes];
  alignas(64) uint8_t buffer_[kLanes * kBytes];
};

// Few tokens: quants go from the packed bytes through registers into the product.
template <Type kType, class S, int kM>
[[gnu::noinline]] void few(Group<kType>& group, const Activations& x, int64_t token, float* sums) {
  Floats acc[1][kM];
  for (int m = 0; m < kM; ++m) acc[0][m] = zero_floats();
  for (int64_t b = 0; b < x.width / S::kBlock; ++b) {
    const S source(group.block(b));
    add_block<S, 1, kM>(&source, x, token, b, acc);
  }
  for (int m = 0; m < kM; ++m) store_floats(sums + kLanes * m, acc[0][m]);
}

template <Type kType, class S>
void few_tokens(Group<kType>& group, const Activations& x, int64_t token, int64_t tokens, float* sums) {
  int64_t t = 0;
  if constexpr (kMostTokensInRegisters >= 8) {
    for (; t + 8 <= tokens; t += 8) few<kType, S, 8>(group, x, token + t, sums + kLanes * t);
  }
  for (; t + 4 <= tokens; t += 4) few<kType, S, 4>(group, x, token + t, sums + kLanes * t);
  for (; t + 2 <= tokens; t += 2) few<kType, S, 2>(group, x, token + t, sums + kLanes * t);
  if (t < tokens) few<kType, S, 1>(group, x, token + t, sums + kLanes * t);
}

// sums are (tokens, kG, kLanes).
template <class P, int kG, int kM>
[[gnu::noinline]] void add_panels(const P* panels, int count, const Activations& x, int64_t token, int64_t b,
                                  float* sums) {
  Floats acc[kG][kM];
  for (int m = 0; m < kM; ++m) {
    for (int g = 0; g < kG; ++g) acc[g][m] = load_floats(sums + kLanes * (kG * m + g));
  }
  for (int i = 0; i < count; ++i) add_block<P, kG, kM>(panels + kG * i, x, token, b + i, acc);
  for (int m = 0; m < kM; ++m) {
    for (int g = 0; g < kG; ++g) store_floats(sums + kLanes * (kG * m + g), acc[g][m]);
  }
}

// Many tokens: a few blocks of kG groups are unpacked once and serve all of them.
template <Type kType, class S, class P, int kG>
[[gnu::noinline]] void many(Group<kType>* groups, const Activations& x, int64_t token, int64_t tokens, float* sums) {
  P panels[P::kChunk * kG];
  const int64_t blocks = x.width / S::kBlock;
  std::memset(sums, 0, tokens * kG * kLanes * 4);
  for (int64_t b = 0; b < blocks; b += P::kChunk) {
    const int count = static_cast<int>(blocks - b < P::kChunk ? blocks - b : P::kChunk);
    for (int i = 0; i < count * kG; ++i) panels[i].fill(S(groups[i % kG].block(b + i / kG)));
    int64_t t = 0;
    for (; t + 4 <= tokens; t += 4) add_panels<P, kG, 4>(panels, count, x, token + t, b, sums + kG * kLanes * t);
    for (; t < tokens; ++t) add_panels<P, kG, 1>(panels, count, x, token + t, b, sums + kG * kLanes * t);
  }
}

// Rows of kG groups from `first` on, for a tile of tokens.
template <Type kType, class S, class P, int kG>
[[gnu::noinline]] void multiply_groups(const Weights& w, const Activations& x, int64_t first, int64_t token,
                                       int64_t tokens, float* y) {
  alignas(64) float sums[kG * kLanes * kMostTokens];
  Group<kType> groups[2] = {{w, first}, {w, first + kG - 1}};
  if (kG == 1 && tokens <= kFew) {
    few_tokens<kType, S>(groups[0], x, token, tokens, sums);
  } else {
    many<kType, S, P, kG>(groups, x, token, tokens, sums);
  }
  const int64_t row = kLanes * first;
  const int64_t rows = w.out - row < kG * kLanes ? w.out - row : kG * kLanes;
  for (int64_t t = 0; t < tokens; ++t) std::memcpy(y + (token + t) * w.out + row, sums + kG * kLanes * t, rows * 4);
}

template <Type kType, class S, class P>
void multiply(const Weights& w, const Activations& x, int64_t first, int64_t last, float* y) {
  int64_t tile = kTileBytes / x.width / 4 * 4;
  tile = tile < 16 ? 16 : tile < kMostTokens ? tile : kMostTokens;
  for (int64_t token = 0; token < x.rows; token += tile) {
    const int64_t tokens = x.rows - token < tile ? x.rows - token : tile;
    int64_t g = first;
    if constexpr (kPanelGroups > 1) {
      if (tokens > kFew) {
        for (; g + kPanelGroups <= last; g += kPanelGroups) {
          multiply_groups<kType, S, P, kPanelGroups>(w, x, g, token, tokens, y);
        }
      }
    }
    for (; g < last; ++g) multiply_groups<kType, S, P, 1>(w, x, g, token, tokens, y);
  }
}
