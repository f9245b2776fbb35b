// Norms and dot products of rows. Included inside each instruction set's namespace and target, after floats_*.h.
//
// Every sum goes over a row in the same order, whatever other rows there are: kSums vectors side by side, then these
// one after the other, then a vector's lanes.

constexpr int kSums = 4;

// `count` < kLanes numbers, `fill` behind them.
inline Floats load_some(const float* p, int64_t count, float fill) {
  alignas(64) float some[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) some[i] = i < count ? p[i] : fill;
  return load(some);
}

inline float sum_of_lanes(Floats v) {
  alignas(64) float lanes[kLanes];
  store(lanes, v);
  for (int step = kLanes / 2; step; step /= 2) {
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  }
  return lanes[0];
}

// The sum of add(sum so far, whole vector at c) over a row; add_some(sum, c, count) adds what is left.
template <class Add, class AddSome>
inline float sum_over(int64_t width, const Add& add, const AddSome& add_some) {
  Floats sums[kSums];
  for (Floats& sum : sums) sum = splat(0.0f);
  int64_t c = 0;
  for (; c + kSums * kLanes <= width; c += kSums * kLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < kSums; ++i) sums[i] = add(sums[i], c + i * kLanes);
  }
  for (int i = 0; c + kLanes <= width; c += kLanes, ++i) sums[i] = add(sums[i], c);
  if (c < width) sums[kSums - 1] = add_some(sums[kSums - 1], c, width - c);
  return sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

inline void norm_rows(const Norm& n, int64_t first, int64_t last) {
  const int64_t width = n.width, whole = width / kLanes * kLanes;
  for (int64_t row = first; row < last; ++row) {
    const float* x = n.x + row * width;
    const float* weights = n.weights ? n.weights + row % n.period * width : nullptr;
    const float* biases = n.biases ? n.biases + row % n.period * width : nullptr;
    float* y = n.y + row * width;
    float mean = 0.0f;
    if (n.centered) {
      mean = sum_over(
                 width, [&](Floats sum, int64_t c) { return sum + load(x + c); },
                 [&](Floats sum, int64_t c, int64_t count) { return sum + load_some(x + c, count, 0.0f); }) /
             static_cast<float>(width);
    }
    const Floats middle = splat(mean);
    const auto squared = [&](Floats sum, Floats v) { return fused(v - middle, v - middle, sum); };
    const float squares = sum_over(
        width, [&](Floats sum, int64_t c) { return squared(sum, load(x + c)); },
        [&](Floats sum, int64_t c, int64_t count) { return squared(sum, load_some(x + c, count, mean)); });
    const float inverse = 1.0f / __builtin_sqrtf(squares / n.divisor + n.epsilon);
    const Floats scale = splat(inverse);
    const auto made = [&](Floats v, Floats weight, Floats bias) { return (v - middle) * scale * weight + bias; };
    for (int64_t c = 0; c < whole; c += kLanes) {
      const Floats weight = weights ? load(weights + c) : splat(1.0f);
      store(y + c, made(load(x + c), weight, biases ? load(biases + c) : splat(0.0f)));
    }
    for (int64_t c = whole; c < width; ++c) {
      const float v = (x[c] - mean) * inverse;
      y[c] = v * (weights ? weights[c] : 1.0f) + (biases ? biases[c] : 0.0f);
    }
  }
}

inline void dot_rows(const Dots& d, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const float *a = d.a + row * d.width, *b = d.b + row * d.b_stride;
    d.sums[row] = sum_over(
        d.width, [&](Floats sum, int64_t c) { return fused(load(a + c), load(b + c), sum); },
        [&](Floats sum, int64_t c, int64_t count) {
          return fused(load_some(a + c, count, 0.0f), load_some(b + c, count, 0.0f), sum);
        });
  }
}
