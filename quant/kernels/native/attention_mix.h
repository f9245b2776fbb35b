// Sums of values, each with its weight: a lane is a column. Included by attention_kernel.h.

// mixed = mixed * shrink + weights . values, for kRows rows and kVecs vectors of columns from `column` on. Values, of
// kType, lie `pitch` bytes apart, weights of a row `stride` floats and those of a position kStep. Those in int8 have
// `blocks` scales each. Meanwhile `ahead` is fetched.
template <int kRows, int kVecs, KvType kType, int64_t kStep>
inline void mix_columns(const float* weights, int64_t stride, int64_t count, const uint8_t* values, int64_t pitch,
                        const float* scales, int64_t blocks, int64_t column, const float* shrink, float* mixed,
                        int64_t mixed_pitch, Ahead& ahead) {
  Floats sum[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) sum[r][v] = load(mixed + r * mixed_pitch + v * kLanes) * splat(shrink[r]);
  }
  constexpr int64_t kBytes = bytes_of(kType);
  for (int64_t s = 0; s < count;) {
    ahead.fetch(4 * kVecs * kLanes * kBytes / 64);
    for (const int64_t end = s + 4 < count ? s + 4 : count; s < end; ++s) {
      Floats x[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        x[v] = load_as(values + s * pitch + v * kLanes * kBytes, kType);
        if constexpr (kType == KvType::q8) x[v] = x[v] * splat(scales[s * blocks + (column + v * kLanes) / kBlock]);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Floats w = splat(weights[s * stride + r * kStep]);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) sum[r][v] = fused(w, x[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) store(mixed + r * mixed_pitch + v * kLanes, sum[r][v]);
  }
}

// Rows from `row` on, in groups of kRows and then of fewer.
template <int kRows, KvType kType, int64_t kStep>
inline void mix_rows(int64_t row, int64_t rows, const float* weights, int64_t stride, int64_t count,
                     const uint8_t* values, int64_t pitch, const float* scales, int64_t blocks, const float* shrink,
                     float* mixed, int64_t mixed_pitch, int64_t width, Ahead& ahead) {
  constexpr int64_t kBytes = bytes_of(kType);
  constexpr int kVecs = kRows < 4 ? 2 * kPanel : kPanel;  // about 8 sums in the making
  for (; row + kRows <= rows; row += kRows) {
    const float* w = weights + row * kStep;
    float* to = mixed + row * mixed_pitch;
    int64_t c = 0;
    const auto columns = [&](auto vecs) {
      constexpr int kOf = decltype(vecs)::value;
      for (; c + (kOf - 1) * kLanes < width; c += kOf * kLanes) {
        mix_columns<kRows, kOf, kType, kStep>(w, stride, count, values + c * kBytes, pitch, scales, blocks, c,
                                              shrink + row, to + c, mixed_pitch, ahead);
      }
    };
    columns(std::integral_constant<int, kVecs>());
    if constexpr (kVecs > kPanel) columns(std::integral_constant<int, kPanel>());
    columns(std::integral_constant<int, 1>());
  }
  if constexpr (kRows > 1) {
    mix_rows<kRows / 2, kType, kStep>(row, rows, weights, stride, count, values, pitch, scales, blocks, shrink, mixed,
                                      mixed_pitch, width, ahead);
  }
}

// `mix_rows` for every type that values of few or of many queries may have when they are mixed.
template <int64_t kStep>
inline auto mixer(KvType type) {
  if constexpr (kStep == 1 && kMostFew >= kStrip) {  // many are more than a strip: their values have been widened
    return mix_rows<kStrip, KvType::f32, kStep>;
  } else {
    return type == KvType::f32   ? mix_rows<kStrip, KvType::f32, kStep>
           : type == KvType::f16 ? mix_rows<kStrip, KvType::f16, kStep>
           : type == KvType::q8  ? mix_rows<kStrip, KvType::q8, kStep>
                                 : mix_rows<kStrip, KvType::bf16, kStep>;
  }
}
