// Weights of logits, and sums over rows of them. Included inside each instruction set's namespace and target; the bits are
// the same in each: nothing is fused, and the lanes are four everywhere.

using Floats4 = float __attribute__((vector_size(16)));
using Ints4 = int32_t __attribute__((vector_size(16)));
using Doubles4 = double __attribute__((vector_size(32)));
using Longs4 = int64_t __attribute__((vector_size(32)));

// Four of a row's numbers as `clean` makes them; -inf behind its end.
inline void load_clean(const float* x, int64_t left, Floats4& values) {
  float four[4] = {-kInfinity, -kInfinity, -kInfinity, -kInfinity};
  if (left < 4) x = static_cast<const float*>(std::memcpy(four, x, left * sizeof(float)));
  std::memcpy(&values, x, sizeof(values));
  const Ints4 size = (Ints4)values & 0x7FFFFFFF;
  values = values == values ? values : Floats4{} - kInfinity;
  values = size < 0x00800000 ? Floats4{} : values;
}

// e^x as a float, for x that is 0 or less: rounded from a double that is off by 2^-37 of it at most. What is below the
// least normal float is 0.
inline void exponentials(const Floats4& x, Doubles4& y) {
  const Doubles4 wide = __builtin_convertvector(x, Doubles4);
  const double rounder = 0x1.8p52;  // the sum's low bits are the number rounded
  const Doubles4 shifted = wide * 0x1.71547652b82fep+0 + rounder;
  const Doubles4 r = wide - (shifted - rounder) * 0x1.62e42fefa39efp-1;
  Doubles4 p = r * (1.0 / 362880) + 1.0 / 40320;  // e^r, |r| <= ln 2 / 2: the next term is 2^-37
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  p *= (Doubles4)(((Longs4)shifted << 52) + (int64_t{1023} << 52));
  const Doubles4 least = Doubles4{} + static_cast<double>(kTiny);
  p = p >= least ? p : Doubles4{};                 // NaN, of -inf, as well
  p = wide >= Doubles4{} - 88.0 ? p : Doubles4{};  // further down the exponent has no room
  y = __builtin_convertvector(__builtin_convertvector(p, Floats4), Doubles4);
}

// `Scale` of four numbers.
inline void scale4(const Scale& scale, Floats4& x) {
  Floats4 below = x - scale.best;
  below = ((Ints4)below & 0x7FFFFFFF) < 0x00800000 ? Floats4{} : below;
  below = x == Floats4{} + scale.best ? Floats4{} : below;
  x = x == Floats4{} - kInfinity ? x : below;
  if (scale.temperature != 1.0f) x /= Floats4{} + scale.temperature;
}

inline double added(const Doubles4& lanes) { return lanes[0] + lanes[1] + (lanes[2] + lanes[3]); }

// Number i is in lane i modulo 4.
inline Masses sums_of(const float* x, int64_t count, Scale scale, float least, bool with_moment) {
  Doubles4 mass = {}, moment = {};
  for (int64_t i = 0; i < count; i += 4) {
    Floats4 values;
    load_clean(x + i, count - i, values);
    values = values >= Floats4{} + least ? values : Floats4{} - kInfinity;
    scale4(scale, values);
    Doubles4 weights;
    exponentials(values, weights);
    mass += weights;
    if (!with_moment) continue;
    const Doubles4 each = weights * __builtin_convertvector(values, Doubles4);
    moment += weights > Doubles4{} ? each : Doubles4{};
  }
  return {added(mass), added(moment)};
}

inline int64_t count_from(const float* x, int64_t count, float least) {
  Longs4 found = {};
  for (int64_t i = 0; i < count; i += 4) {
    Floats4 values;
    load_clean(x + i, count - i, values);
    found -= __builtin_convertvector(values >= Floats4{} + least, Longs4);
  }
  const int64_t behind = -count & 3;  // -inf, which only -inf does not exceed
  return found[0] + found[1] + found[2] + found[3] - (least == -kInfinity ? behind : 0);
}

inline float deviation_of(const float* x, int64_t count) {
  const Doubles4 infinity = Doubles4{} + static_cast<double>(kInfinity);
  Doubles4 sum = {}, squares = {}, number = {};
  const auto each = [&](const auto& add) {
    for (int64_t i = 0; i < count; i += 4) {
      Floats4 values;
      load_clean(x + i, count - i, values);
      const Doubles4 wide = __builtin_convertvector(values, Doubles4);
      add(values, (wide < infinity) & (wide > -infinity));
    }
  };
  each([&](const Floats4& values, const Longs4& finite) {
    sum += finite ? __builtin_convertvector(values, Doubles4) : Doubles4{};
    number += finite ? Doubles4{} + 1.0 : Doubles4{};
  });
  const float numbers = static_cast<float>(std::max(added(number), 1.0));
  const float mean = static_cast<float>(added(sum)) / numbers;
  each([&](const Floats4& values, const Longs4& finite) {
    const Doubles4 off = __builtin_convertvector(values - mean, Doubles4);
    squares += finite ? off * off : Doubles4{};
  });
  return static_cast<float>(std::sqrt(static_cast<double>(static_cast<float>(added(squares)) / numbers)));
}

inline void weights_of(const float* x, int64_t count, Scale scale, float* weights) {
  for (int64_t i = 0; i < count; i += 4) {
    Floats4 values;
    load_clean(x + i, count - i, values);
    scale4(scale, values);
    Doubles4 wide;
    exponentials(values, wide);
    const Floats4 four = __builtin_convertvector(wide, Floats4);
    std::memcpy(weights + i, &four, std::min<int64_t>(4, count - i) * sizeof(float));
  }
}
