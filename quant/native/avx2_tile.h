// AVX2: tiles of 8 rows by many tokens, the same for every format. Included inside avx2's namespace and target.

constexpr int64_t kFew = 8;          // tokens for which unpacking to memory does not pay
constexpr int64_t kMostTokens = 128;  // of a tile: their f32 sums take 4 KB
constexpr int64_t kTileBytes = 1 << 18;  // int8 activations of a tile, which stay in L2

// Bytes to fetch ahead in layout "rows8", a stream of its own: 24.5 without and 28.5 G weights/s with, Q4_K, one core.
constexpr int64_t kAhead = 3456;

// 8 x 8 words, transposed: word i of row r to word r of line i.
inline void transpose(const uint8_t* const* rows, int64_t from, uint8_t* to) {
  __m256i a[8], b[8];
  for (int r = 0; r < 8; ++r) a[r] = at(rows[r] + from);
  for (int r = 0; r < 8; r += 2) {
    b[r] = _mm256_unpacklo_epi32(a[r], a[r + 1]);
    b[r + 1] = _mm256_unpackhi_epi32(a[r], a[r + 1]);
  }
  for (int r = 0; r < 8; r += 4) {
    a[r] = _mm256_unpacklo_epi64(b[r], b[r + 2]);
    a[r + 1] = _mm256_unpackhi_epi64(b[r], b[r + 2]);
    a[r + 2] = _mm256_unpacklo_epi64(b[r + 1], b[r + 3]);
    a[r + 3] = _mm256_unpackhi_epi64(b[r + 1], b[r + 3]);
  }
  for (int r = 0; r < 4; ++r) {
    auto* line = reinterpret_cast<__m256i*>(to + 32 * r);
    _mm256_storeu_si256(line, _mm256_permute2x128_si256(a[r], a[r + 4], 0x20));
    _mm256_storeu_si256(line + 4, _mm256_permute2x128_si256(a[r], a[r + 4], 0x31));
  }
}

template <int kUnit>
inline void interleave_units(const uint8_t* const* rows, int from, int to, uint8_t* octet) {
  for (int i = from; i < to; i += kUnit) {
    for (int r = 0; r < 8; ++r) std::memcpy(octet + 8 * i + r * kUnit, rows[r] + i, kUnit);
  }
}

// One octet block in layout "rows8" from 8 rows in ggml's.
template <Type kType>
[[gnu::noinline]] void interleave(const uint8_t* const* rows, uint8_t* octet) {
  constexpr const Format& format = *find_format(kType);
  for (const Field& field : format.fields) {
    const int end = field.offset + field.length;
    int i = field.offset;
    if (field.unit == 4) {
      for (; i + 32 <= end; i += 32) transpose(rows, i, octet + 8 * i);
      interleave_units<4>(rows, i, end, octet);
    } else if (field.unit == 2) {
      interleave_units<2>(rows, i, end, octet);
    } else {
      interleave_units<1>(rows, i, end, octet);
    }
  }
}

// The blocks of one octet of rows, in layout "rows8" whatever the weights' layout.
template <Type kType>
class Octet {
 public:
  static constexpr int kBytes = find_format(kType)->bytes;

  Octet(const Weights& w, int64_t octet) : rows8_(w.rows8), next_(8 * w.blocks * kBytes) {
    for (int r = 0; r < 8; ++r) {
      const int64_t row = 8 * octet + r;  // past the end: the last row again, and nobody reads the result
      rows_[r] = w.data + (rows8_ ? 8 * octet : row < w.out ? row : w.out - 1) * w.blocks * kBytes;
    }
  }

  const uint8_t* block(int64_t b) {
    if (rows8_) {
      const uint8_t* block = rows_[0] + b * 8 * kBytes;
      prefetch(block + kAhead);
      return block;
    }
    // The next octet's share. Eight streams of a block each are too many for the prefetcher: 10 against 18 to 21.
    prefetch(rows_[0] + next_ + b * 8 * kBytes);
    const uint8_t* at[8];
    for (int r = 0; r < 8; ++r) at[r] = rows_[r] + b * kBytes;
    interleave<kType>(at, buffer_);
    return buffer_;
  }

 private:
  static void prefetch(const uint8_t* from) {
    for (int i = 0; i < 8 * kBytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(from + i), _MM_HINT_T0);
  }

  bool rows8_;
  int64_t next_;  // bytes of an octet
  const uint8_t* rows_[8];
  alignas(32) uint8_t buffer_[8 * kBytes];
};

// Few tokens: quants go from the packed bytes through registers into the product.
template <Type kType, class S, int kM>
[[gnu::noinline]] void few(Octet<kType>& octet, const Activations& x, int64_t token, float* sums) {
  __m256 acc[kM];
  for (int m = 0; m < kM; ++m) acc[m] = _mm256_setzero_ps();
  for (int64_t b = 0; b < x.width / S::kBlock; ++b) add_block<S, kM>(S(octet.block(b)), x, token, b, acc);
  for (int m = 0; m < kM; ++m) _mm256_store_ps(sums + 8 * m, acc[m]);
}

template <class P, int kM>
[[gnu::noinline]] void add_panels(const P* panels, int count, const Activations& x, int64_t token, int64_t b,
                                  float* sums) {
  __m256 acc[kM];
  for (int m = 0; m < kM; ++m) acc[m] = _mm256_load_ps(sums + 8 * m);
  for (int i = 0; i < count; ++i) add_block<P, kM>(panels[i], x, token, b + i, acc);
  for (int m = 0; m < kM; ++m) _mm256_store_ps(sums + 8 * m, acc[m]);
}

// Many tokens: a few blocks are unpacked once and serve all of them.
template <Type kType, class S, class P>
[[gnu::noinline]] void many(Octet<kType>& octet, const Activations& x, int64_t token, int64_t tokens, float* sums) {
  P panels[P::kChunk];
  const int64_t blocks = x.width / S::kBlock;
  std::memset(sums, 0, tokens * 32);
  for (int64_t b = 0; b < blocks; b += P::kChunk) {
    const int count = static_cast<int>(blocks - b < P::kChunk ? blocks - b : P::kChunk);
    for (int i = 0; i < count; ++i) panels[i].fill(S(octet.block(b + i)));
    int64_t t = 0;
    for (; t + 4 <= tokens; t += 4) add_panels<P, 4>(panels, count, x, token + t, b, sums + 8 * t);
    for (; t < tokens; ++t) add_panels<P, 1>(panels, count, x, token + t, b, sums + 8 * t);
  }
}

template <Type kType, class S, class P>
void multiply(const Weights& w, const Activations& x, int64_t first, int64_t last, float* y) {
  alignas(32) float sums[8 * kMostTokens];
  int64_t tile = kTileBytes / x.width / 4 * 4;
  tile = tile < 16 ? 16 : tile < kMostTokens ? tile : kMostTokens;
  for (int64_t token = 0; token < x.rows; token += tile) {
    const int64_t tokens = x.rows - token < tile ? x.rows - token : tile;
    for (int64_t o = first; o < last; ++o) {
      Octet<kType> octet(w, o);
      if (tokens > kFew) {
        many<kType, S, P>(octet, x, token, tokens, sums);
      } else {
        int64_t t = 0;
        for (; t + 4 <= tokens; t += 4) few<kType, S, 4>(octet, x, token + t, sums + 8 * t);
        for (; t + 2 <= tokens; t += 2) few<kType, S, 2>(octet, x, token + t, sums + 8 * t);
        if (t < tokens) few<kType, S, 1>(octet, x, token + t, sums + 8 * t);
      }
      const int64_t rows = w.out - 8 * o < 8 ? w.out - 8 * o : 8;
      for (int64_t t = 0; t < tokens; ++t) std::memcpy(y + (token + t) * w.out + 8 * o, sums + 8 * t, rows * 4);
    }
  }
}
