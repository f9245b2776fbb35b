// Readers of one column, with activations as they are. Included inside a namespace and target, after numbers.h.

struct Column {
  using Unit = Floats;
  using Value = float;
  static constexpr int kColumns = 1;
  static const float* values(const Activations& x) { return x.values; }
  static Floats spread(const float* value) { return splat(*value); }
  static Floats add(Floats sum, Floats weights, Floats value) { return fused(weights, value, sum); }
  static Floats last(const uint8_t*) { return splat(0.0f); }  // of one column there is no odd number
};

struct ReadF32 : Column {
  static constexpr int kBytes = 4 * kLanes;
  static Floats unit(const uint8_t* at) { return load(reinterpret_cast<const float*>(at)); }
};

struct ReadF16 : Column {
  static constexpr int kBytes = 2 * kLanes;
  static Floats unit(const uint8_t* at) { return load_f16(at); }
};

struct ReadBF16 : Column {
  static constexpr int kBytes = 2 * kLanes;
  static Floats unit(const uint8_t* at) { return load_bf16(at); }
};

inline Multiply find_numbers(Type type) {
  switch (type) {
    case F32: return multiply<ReadF32>;
    case F16: return multiply<ReadF16>;
    case BF16: return multiply<ReadBF16>;
    default: return nullptr;
  }
}
