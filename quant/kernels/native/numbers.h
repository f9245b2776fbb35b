// Products with plain numbers: F32, F16, BF16. Included inside each instruction set's namespace and target, after
// floats_*.h and kManyGroups.
//
// The packed bytes are in layout "rowsN" (weights.h): one column of kLanes rows, then the next. A lane is a row, so that
// nothing is ever added across lanes. A row times a token is a chain of fused multiply-adds over each run of kRun
// columns, from 0, and the sum of these chains in order. How many rows or tokens are made at a time changes none of it.
//
// How weights become what multiplies is a reader's:
//
//   kColumns  of a unit: one, or two whose products one instruction adds
//   kBytes    of a unit of kLanes rows
//   unit      what is at such bytes; last  the same of the last column alone, where the number of columns is odd
//   values    the activations, one to a unit: floats, or pairs of bfloat16
//   spread    such a one in every lane
//   add       sum + weights * activations

constexpr int kTokens = 6;               // of a block of sums in registers
constexpr int kFewTokens = 2;            // that wait for memory, whose sums of kFewGroups fit 16 registers
constexpr int kFewGroups = 4;            // of rows: as many streams from memory
constexpr int64_t kRun = 256;            // columns
constexpr int64_t kAhead = 2048;         // bytes to fetch ahead in a stream, of 1024, 2048, 4096 the fastest
constexpr int64_t kTile = 86 * kTokens;  // tokens whose sums stay in L2

// Groups of rows in layout "rowsN", `stride` bytes apart.
struct Groups {
  const uint8_t* data;
  int64_t stride;
};

template <class R, int kG, int kM, bool kLast>
inline void add_unit(Groups w, const typename R::Value* x, int64_t x_stride, Floats (*acc)[kM]) {
  typename R::Unit weights[kG];
#pragma GCC unroll 8
  for (int g = 0; g < kG; ++g) {
    const uint8_t* at = w.data + g * w.stride;
    if constexpr (kM <= kFewTokens) __builtin_prefetch(at + kAhead);
    if constexpr (kLast) weights[g] = R::last(at);
    else weights[g] = R::unit(at);
  }
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    const typename R::Unit value = R::spread(x + m * x_stride);
#pragma GCC unroll 8
    for (int g = 0; g < kG; ++g) acc[g][m] = R::add(acc[g][m], weights[g], value);
  }
}

// sums (kM, kG, kLanes) += kG groups of rows . kM tokens over one run.
template <class R, int kG, int kM>
[[gnu::noinline]] void add_run(Groups w, int64_t columns, const typename R::Value* x, int64_t x_stride,
                               float* sums) {
  Floats acc[kG][kM];
#pragma GCC unroll 8
  for (int g = 0; g < kG; ++g) {
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) acc[g][m] = splat(0.0f);
  }
#pragma GCC unroll 1
  for (int64_t c = R::kColumns; c <= columns; c += R::kColumns, w.data += R::kBytes, ++x) {
    add_unit<R, kG, kM, false>(w, x, x_stride, acc);
  }
  if (columns % R::kColumns) add_unit<R, kG, kM, true>(w, x, x_stride, acc);
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 8
    for (int g = 0; g < kG; ++g) {
      float* sum = sums + kLanes * (kG * m + g);
      store(sum, load(sum) + acc[g][m]);
    }
  }
}

// The same for a number of tokens that is known when it runs, at most kM.
template <class R, int kG, int kM>
inline void add_tokens(int64_t tokens, Groups w, int64_t columns, const typename R::Value* x,
                       int64_t x_stride, float* sums) {
  if (tokens == kM) return add_run<R, kG, kM>(w, columns, x, x_stride, sums);
  if constexpr (kM > 1) add_tokens<R, kG, kM - 1>(tokens, w, columns, x, x_stride, sums);
}

// A run of columns of kG groups from `group` on: where it lies, or for ggml's layout in `buffer` with its rows side by
// side. A row past the end is the last one again, and nobody reads the result.
template <class R, int kG>
inline Groups run_of(const Weights& w, int64_t group, int64_t column, int64_t columns, uint8_t* buffer) {
  constexpr int64_t kSize = R::kBytes / R::kColumns / kLanes;
  if (w.lanes > 1) {
    const int64_t stride = w.blocks * kLanes * kSize;
    return {w.data + group * stride + column * kLanes * kSize, stride};
  }
  for (int64_t r = 0; r < kG * kLanes; ++r) {
    const int64_t row = kLanes * group + r;
    const uint8_t* from = w.data + ((row < w.out ? row : w.out - 1) * w.blocks + column) * kSize;
    uint8_t* to = buffer + (r / kLanes * columns * kLanes + r % kLanes) * kSize;
    for (int64_t c = 0; c < columns; ++c) std::memcpy(to + c * kLanes * kSize, from + c * kSize, kSize);
  }
  return {buffer, columns * kLanes * kSize};
}

// Fetches a run of the next tokens: rows of a power of two come from L3, which keeps few such apart.
template <class R>
inline void fetch(const typename R::Value* x, int64_t x_stride, int64_t tokens, int64_t columns) {
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < columns; c += 16 * R::kColumns) __builtin_prefetch(x + t * x_stride + c / R::kColumns);
  }
}

// Rows of kG groups from `group` on, for all tokens, kM at a time. A run of weights serves all tokens from L1.
template <class R, int kG, int kM>
[[gnu::noinline]] void multiply_groups(const Weights& w, const Activations& x, int64_t group, float* y) {
  constexpr int64_t kSums = kG * kLanes * kTile;
  float* sums = workspace(kSums + kG * kRun / R::kColumns * R::kBytes / 4);
  auto* buffer = reinterpret_cast<uint8_t*>(sums + kSums);
  const int64_t row = kLanes * group, rows = w.out - row < kG * kLanes ? w.out - row : kG * kLanes;
  const int64_t x_stride = (x.width + R::kColumns - 1) / R::kColumns;
  for (int64_t token = 0; token < x.rows; token += kTile) {
    const int64_t tokens = x.rows - token < kTile ? x.rows - token : kTile;
    std::memset(sums, 0, tokens * kG * kLanes * 4);
    for (int64_t column = 0; column < x.width; column += kRun) {
      const int64_t columns = x.width - column < kRun ? x.width - column : kRun;
      const Groups run = run_of<R, kG>(w, group, column, columns, buffer);
      const typename R::Value* values = R::values(x) + token * x_stride + column / R::kColumns;
      for (int64_t t = 0; t < tokens; t += kM, values += kM * x_stride) {
        const int64_t some = tokens - t < kM ? tokens - t : kM, next = tokens - t < 2 * kM ? tokens - t - some : kM;
        fetch<R>(values + kM * x_stride, x_stride, next, columns);
        add_tokens<R, kG, kM>(some, run, columns, values, x_stride, sums + kG * kLanes * t);
      }
    }
    for (int64_t t = 0; t < tokens; ++t) std::memcpy(y + (token + t) * w.out + row, sums + kG * kLanes * t, rows * 4);
  }
}

template <class R, int kG, int kM>
inline void multiply_each(const Weights& w, const Activations& x, int64_t first, int64_t last, float* y) {
  int64_t group = first;
  for (; group + kG <= last; group += kG) multiply_groups<R, kG, kM>(w, x, group, y);
  for (; group < last; ++group) multiply_groups<R, 1, kM>(w, x, group, y);
}

template <class R>
void multiply(const Weights& w, const Activations& x, int64_t first, int64_t last, float* y) {
  if (x.rows <= kFewTokens) return multiply_each<R, kFewGroups, kFewTokens>(w, x, first, last, y);
  multiply_each<R, kManyGroups, kTokens>(w, x, first, last, y);
}
