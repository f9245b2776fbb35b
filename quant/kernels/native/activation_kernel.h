// Activations of feed-forwards, sigmoids and softmaxes. Included inside each instruction set's namespace and target, after
// floats_*.h and exp2.h.
//
// model.network.ffn.dense.activate has the formulas and their sources. Where a number is NaN, so is what is made of it.

// e^x for x <= 0: 2 to the power of x / ln 2, whose rounding error is made good.
inline Floats exp_of(Floats x) {
  const Floats power = x * splat(0x1.715476p+0f);
  const Floats lost = fused(x, splat(0x1.4ae0bep-26f), fused(x, splat(0x1.715476p+0f), splat(0.0f) - power));
  const Floats rest = x < splat(-87.0f) ? splat(0.0f) : lost * splat(0x1.62e430p-1f);  // -inf has none
  const Floats y = exp2_of(power);
  return fused(y, rest, y);
}

// 1 / (1 + e^-x), of which neither large nor small x loses digits.
inline Floats sigmoid_of(Floats x) {
  const Floats e = exp_of(x < splat(0.0f) ? x : splat(0.0f) - x);
  return (x < splat(0.0f) ? e : splat(1.0f)) / (splat(1.0f) + e);
}

// x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2; (1 + tanh(u)) / 2 is sigmoid(2 u).
inline Floats gelu_of(Floats x) {
  const Floats u = splat(0x1.988454p-1f) * fused(splat(0.044715f) * x * x, x, x);
  return x * sigmoid_of(u + u);
}

template <Activation kKind>
inline Floats activated(Floats gate, Floats up) {
  if constexpr (kKind == Activation::swiglu) return gate * sigmoid_of(gate) * up;
  if constexpr (kKind == Activation::geglu) return gelu_of(gate) * up;
  if constexpr (kKind == Activation::gelu) return gelu_of(gate);
  if constexpr (kKind == Activation::relu2) {
    const Floats positive = gate < splat(0.0f) ? splat(0.0f) : gate;
    return positive * positive;
  }
  const Floats limit = splat(7.0f), least = splat(-7.0f);
  gate = gate > limit ? limit : gate;
  up = up > limit ? limit : up < least ? least : up;
  return gate * sigmoid_of(splat(1.702f) * gate) * (up + splat(1.0f));
}

// y[i] = f(a[i], b[i]), the last ones as in a vector with others.
template <class F>
inline void each_of(const float* a, const float* b, int64_t count, float* y, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(y + i, f(load(a + i), load(b + i)));
  if (i == count) return;
  alignas(64) float first[kLanes] = {}, second[kLanes] = {};
  for (int64_t l = 0; l < count - i; ++l) first[l] = a[i + l], second[l] = b[i + l];
  store(first, f(load(first), load(second)));
  for (int64_t l = 0; l < count - i; ++l) y[i + l] = first[l];
}

inline void activate(Activation kind, const float* gate, const float* up, int64_t count, float* y) {
  switch (kind) {
    case Activation::swiglu: return each_of(gate, up, count, y, activated<Activation::swiglu>);
    case Activation::geglu: return each_of(gate, up, count, y, activated<Activation::geglu>);
    case Activation::gelu: return each_of(gate, up, count, y, activated<Activation::gelu>);
    case Activation::relu2: return each_of(gate, up, count, y, activated<Activation::relu2>);
    case Activation::swiglu_oai: return each_of(gate, up, count, y, activated<Activation::swiglu_oai>);
  }
}

inline Floats sigmoid_of_first(Floats x, Floats) { return sigmoid_of(x); }

inline void sigmoid(const float* x, int64_t count, float* y) { each_of(x, x, count, y, sigmoid_of_first); }

// The sum goes over the numbers one after the other.
inline void softmax(const float* x, int64_t count, float* y) {
  float most = x[0];
  for (int64_t i = 1; i < count; ++i) most = x[i] > most ? x[i] : most;
  const Floats top = splat(most);
  each_of(x, x, count, y, [=](Floats v, Floats) { return exp_of(v - top); });
  float sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) sum += y[i];
  for (int64_t i = 0; i < count; ++i) y[i] /= sum;
}
