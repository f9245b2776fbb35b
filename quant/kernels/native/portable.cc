// Products in plain C++: any CPU, and the twin that the faster kernels are tested against.
//
// A block is unpacked to int8 quants, small integer scales and f32 factors:
//
//   32 elements    weight = d * q + m
//   256 elements   weight = d * sc[s] * q - dmin * mn[s],  s the sub-block of 16 or 32
//   64, 128        weight = d * q, of NVFP4 scale[s] * q,  s the sub-block of 16
//
// so that a block's dot product is integer arithmetic, exact, times f32 scales. Byte diagrams: quant/formats/legacy.py,
// quant/formats/kquants.py, quant/formats/iquants.py, quant/formats/ternary.py, quant/formats/fp4.py.

#include <cmath>
#include <cstring>

#include "grids.h"
#include "weights.h"

namespace packlight {
namespace {

#include "quantize.h"

constexpr int kSub16 = 16, kSub32 = 32;
constexpr int kRows = 8;  // of a piece of work

struct Unpacked {
  int8_t q[256];
  int16_t sc[16], mn[16];
  float d, dmin, m, scale[4];
};

float half(const uint8_t* at) {
  const uint32_t h = at[0] | at[1] << 8, exponent = h >> 10 & 31, mantissa = h & 1023;
  uint32_t bits = (h & 0x8000) << 16;
  if (exponent == 31) {
    bits |= 0x7F800000 | mantissa << 13;
  } else if (exponent) {
    bits |= (exponent + 112) << 23 | mantissa << 13;
  } else {
    const float tiny = static_cast<float>(mantissa) * 0x1p-24f;
    return bits ? -tiny : tiny;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Runs of 16 bytes to 32 quants: low nibbles, then high ones.
void nibbles(const uint8_t* qs, int8_t* q, int n = 16) {
  for (int i = 0; i < n; ++i) q[i] = qs[i] & 15;
  for (int i = 0; i < n; ++i) q[n + i] = static_cast<int8_t>(qs[i] >> 4);
}

void fifth_bits(const uint8_t* qh, int8_t* q) {
  for (int i = 0; i < 32; ++i) q[i] |= static_cast<int8_t>((qh[i / 8] >> i % 8 & 1) << 4);
}

constexpr int8_t kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kFp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

void look_up(const int8_t* table, int8_t* q, int n) {
  for (int i = 0; i < n; ++i) q[i] = table[q[i]];
}

// The 6-bit scales and minimums of Q4_K and Q5_K.
void scale_min(const uint8_t* s, Unpacked& u) {
  for (int i = 0; i < 4; ++i) {
    u.sc[i] = s[i] & 63, u.mn[i] = s[i + 4] & 63;
    u.sc[i + 4] = static_cast<int16_t>((s[i + 8] & 15) | s[i] >> 6 << 4);
    u.mn[i + 4] = static_cast<int16_t>(s[i + 8] >> 4 | s[i + 4] >> 6 << 4);
  }
}

// The first `digits` base-3 digits of n bytes, less 1: the first of all, then the second of all.
void ternary(const uint8_t* qs, int n, int digits, int8_t* q) {
  for (int i = 0; i < n; ++i) {
    uint8_t rest = qs[i];
    for (int digit = 0; digit < digits; ++digit, rest = static_cast<uint8_t>(3 * rest)) {
      q[n * digit + i] = static_cast<int8_t>((rest * 3 >> 8) - 1);
    }
  }
}

// Half of 0 EEEEMMM.
float half_ue4m3(uint8_t x) {
  const int exponent = x >> 3 & 15, mantissa = x & 7;
  if (x == 0x7F) return 0;
  return std::ldexp(static_cast<float>(exponent ? 8 + mantissa : mantissa), (exponent ? exponent : 1) - 11);
}

// Entry `index` of a grid, with signs by its bits from the lowest on.
template <Type kType>
void entry(int index, int signs, int8_t* q) {
  constexpr int n = grid_width(kType);
  const uint8_t* values = grid_of<grid_type(kType)>.values + n * index;
  for (int i = 0; i < n; ++i) {
    const int value = values[i] - grid_offset(kType);
    q[i] = static_cast<int8_t>(signs >> i & 1 ? -value : value);
  }
}

int with_parity(int sevens) { return sevens | (__builtin_popcount(sevens) & 1) << 7; }

int word16(const uint8_t* at) { return at[0] | at[1] << 8; }

template <Type kType>
void unpack_grid(const uint8_t* b, Unpacked& u) {
  u.d = half(b) * (kType == IQ3_S ? 1.0f : kType == IQ3_XXS ? 0.25f : 0.125f);
  for (int s = 0; s < 8; ++s) {  // runs of 32
    int8_t* q = u.q + 32 * s;
    if constexpr (kType == IQ2_XXS || kType == IQ3_XXS) {
      const uint8_t *qs = b + 2 + 8 * s, *words = kType == IQ2_XXS ? qs + 4 : b + 66 + 4 * s;
      const uint32_t word = static_cast<uint32_t>(word16(words)) | static_cast<uint32_t>(word16(words + 2)) << 16;
      u.sc[s] = static_cast<int16_t>(2 * (word >> 28) + 1);
      for (int g = 0; g < 4; ++g) {
        const int signs = with_parity(word >> 7 * g & 127);
        if constexpr (kType == IQ2_XXS) {
          entry<kType>(qs[g], signs, q + 8 * g);
        } else {
          entry<kType>(qs[2 * g], signs, q + 8 * g);
          entry<kType>(qs[2 * g + 1], signs >> 4, q + 8 * g + 4);
        }
      }
    } else if constexpr (kType == IQ2_XS || kType == IQ2_S) {
      const uint8_t scale = b[(kType == IQ2_XS ? 66 : 74) + s];
      u.sc[2 * s] = static_cast<int16_t>(2 * (scale & 15) + 1), u.sc[2 * s + 1] = static_cast<int16_t>(2 * (scale >> 4) + 1);
      for (int g = 0; g < 4; ++g) {
        const int at = 4 * s + g;
        if constexpr (kType == IQ2_XS) {
          const int word = word16(b + 2 + 2 * at);
          entry<kType>(word & 511, with_parity(word >> 9), q + 8 * g);
        } else {
          entry<kType>(b[2 + at] | (b[66 + s] >> 2 * g & 3) << 8, b[34 + at], q + 8 * g);
        }
      }
    } else if constexpr (kType == IQ3_S) {
      u.sc[s] = static_cast<int16_t>(2 * (b[106 + s / 2] >> s % 2 * 4 & 15) + 1);
      for (int g = 0; g < 8; ++g) {
        const int index = b[2 + 8 * s + g] | (b[66 + s] >> g & 1) << 8;
        entry<kType>(index, b[74 + 4 * s + g / 2] >> g % 2 * 4, q + 4 * g);
      }
    } else {
      const int qh = word16(b + (kType == IQ1_S ? 34 : 32) + 2 * s), word = kType == IQ1_M ? word16(b + 48 + s / 2 * 2) : 0;
      if constexpr (kType == IQ1_S) u.sc[s] = static_cast<int16_t>(2 * (qh >> 12 & 7) + 1);
      for (int c = 0; kType == IQ1_M && c < 2; ++c) {
        u.sc[2 * s + c] = static_cast<int16_t>(2 * (word >> (s % 2 * 6 + 3 * c) & 7) + 1);
      }
      for (int g = 0; g < 4; ++g) {
        const int bits = kType == IQ1_S ? (qh >> 3 * g & 7) | qh >> 15 << 3 : qh >> 4 * g & 15;  // D_hhh
        entry<kType>(b[(kType == IQ1_S ? 2 : 0) + 4 * s + g] | (bits & 7) << 8, 0, q + 8 * g);
        for (int i = 0; i < 8; ++i) q[8 * g + i] = static_cast<int8_t>(q[8 * g + i] + (bits & 8 ? -1 : 1));
      }
    }
  }
  if constexpr (kType == IQ1_M) {
    uint8_t scale[2];
    for (int i = 0; i < 2; ++i) scale[i] = static_cast<uint8_t>(b[49 + 4 * i] >> 4 | (b[51 + 4 * i] & 0xF0));
    u.d = half(scale) * 0.125f;
  }
}

template <Type kType>
void unpack(const uint8_t* b, Unpacked& u) {
  u.m = 0, u.dmin = 0;
  std::memset(u.mn, 0, sizeof u.mn);
  if constexpr (grid_entries(kType)) {
    unpack_grid<kType>(b, u);
  } else if constexpr (kType == Q4_0) {
    u.d = half(b), u.m = -8 * u.d;
    nibbles(b + 2, u.q);
  } else if constexpr (kType == Q4_1) {
    u.d = half(b), u.m = half(b + 2);
    nibbles(b + 4, u.q);
  } else if constexpr (kType == Q5_0) {
    u.d = half(b), u.m = -16 * u.d;
    nibbles(b + 6, u.q);
    fifth_bits(b + 2, u.q);
  } else if constexpr (kType == Q5_1) {
    u.d = half(b), u.m = half(b + 2);
    nibbles(b + 8, u.q);
    fifth_bits(b + 4, u.q);
  } else if constexpr (kType == Q8_0) {
    u.d = half(b);
    std::memcpy(u.q, b + 2, 32);
  } else if constexpr (kType == IQ4_NL) {
    u.d = half(b);
    nibbles(b + 2, u.q);
    look_up(kIq4, u.q, 32);
  } else if constexpr (kType == MXFP4) {
    const uint32_t bits = b[0] < 2 ? 0x00200000u << b[0] : (b[0] - 1u) << 23;  // 2^(e - 128)
    std::memcpy(&u.d, &bits, 4);
    nibbles(b + 1, u.q);
    look_up(kFp4, u.q, 32);
  } else if constexpr (kType == Q1_0) {
    u.d = half(b);
    for (int e = 0; e < 128; ++e) u.q[e] = static_cast<int8_t>(2 * (b[2 + e / 8] >> e % 8 & 1) - 1);
  } else if constexpr (kType == Q2_0) {
    u.d = half(b);
    for (int e = 0; e < 64; ++e) u.q[e] = static_cast<int8_t>((b[2 + e / 4] >> 2 * (e % 4) & 3) - 1);
  } else if constexpr (kType == NVFP4) {
    for (int s = 0; s < 4; ++s) {
      u.scale[s] = half_ue4m3(b[s]);
      nibbles(b + 4 + 8 * s, u.q + 16 * s, 8);
    }
    look_up(kFp4, u.q, 64);
  } else if constexpr (kType == TQ1_0 || kType == TQ2_0) {
    u.d = half(b + (kType == TQ1_0 ? 52 : 64));
    for (auto& scale : u.sc) scale = 1;
    if constexpr (kType == TQ1_0) {
      ternary(b, 32, 5, u.q);
      ternary(b + 32, 16, 5, u.q + 160);
      ternary(b + 48, 4, 4, u.q + 240);
    } else {
      for (int e = 0; e < 256; ++e) {
        u.q[e] = static_cast<int8_t>((b[e / 128 * 32 + e % 32] >> (e / 32 % 4 * 2) & 3) - 1);
      }
    }
  } else if constexpr (kType == Q2_K) {
    u.d = half(b + 80), u.dmin = half(b + 82);
    for (int s = 0; s < 16; ++s) u.sc[s] = b[s] & 15, u.mn[s] = b[s] >> 4;
    for (int e = 0; e < 256; ++e) u.q[e] = b[16 + e / 128 * 32 + e % 32] >> (e / 32 % 4 * 2) & 3;
  } else if constexpr (kType == Q3_K) {
    u.d = half(b + 108);
    for (int s = 0; s < 16; ++s) {
      const int low = b[96 + s % 8] >> (s / 8 * 4) & 15, high = b[104 + s % 4] >> (s / 4 * 2) & 3;
      u.sc[s] = static_cast<int16_t>((low | high << 4) - 32);
    }
    for (int e = 0; e < 256; ++e) {
      const int low = b[32 + e / 128 * 32 + e % 32] >> (e / 32 % 4 * 2) & 3, high = b[e % 32] >> (e / 32) & 1;
      u.q[e] = static_cast<int8_t>((low | high << 2) - 4);
    }
  } else if constexpr (kType == Q4_K || kType == Q5_K) {
    u.d = half(b), u.dmin = half(b + 2);
    scale_min(b + 4, u);
    const uint8_t* qs = b + (kType == Q4_K ? 16 : 48);
    for (int i = 0; i < 4; ++i) nibbles(qs + 32 * i, u.q + 64 * i, 32);
    if constexpr (kType == Q5_K) {
      for (int e = 0; e < 256; ++e) u.q[e] |= static_cast<int8_t>((b[16 + e % 32] >> (e / 32) & 1) << 4);
    }
  } else if constexpr (kType == Q6_K) {
    u.d = half(b + 208);
    for (int s = 0; s < 16; ++s) u.sc[s] = static_cast<int8_t>(b[192 + s]);
    for (int e = 0; e < 256; ++e) {
      const int h = e / 128, n = e / 64 % 2, r = e / 32 % 2, l = e % 32;
      const int low = b[64 * h + 32 * r + l] >> 4 * n & 15, high = b[128 + 32 * h + l] >> 2 * (2 * n + r) & 3;
      u.q[e] = static_cast<int8_t>((low | high << 4) - 32);
    }
  } else {
    static_assert(kType == IQ4_XS);
    u.d = half(b);
    for (int s = 0; s < 8; ++s) {
      const int low = b[4 + s / 2] >> (s % 2 * 4) & 15, high = b[2 + s / 4] >> (s % 4 * 2) & 3;
      u.sc[s] = static_cast<int16_t>((low | high << 4) - 32);
      nibbles(b + 8 + 16 * s, u.q + 32 * s);
    }
    look_up(kIq4, u.q, 256);
  }
}

template <int kRun>
inline int dot(const int8_t* a, const int8_t* b) {
  int sum = 0;
  for (int i = 0; i < kRun; ++i) sum += a[i] * b[i];
  return sum;
}

template <Type kType>
float dot_block(const Unpacked& u, const Activations& x, int64_t row, int64_t b) {
  constexpr int elements = find_format(kType)->elements;
  const int8_t* q = x.q + row * x.width + b * elements;
  const int64_t at = row * (x.width / x.block) + b;
  if constexpr (elements == 64 || elements == 128) {
    const float* d = x.d + row * (x.width / 32) + b * (elements / 32);
    float sum = 0;
    for (int s = 0; s < elements / 16; ++s) {
      const float scale = kType == NVFP4 ? u.scale[s] : u.d;
      sum += scale * d[s / 2] * static_cast<float>(dot<16>(u.q + 16 * s, q + 16 * s));
    }
    return sum;
  } else if constexpr (elements == 32) {
    return u.d * x.d[at] * static_cast<float>(dot<32>(u.q, q)) + u.m * x.d_sum[at];
  } else {
    constexpr bool short_grid = kType == IQ2_XS || kType == IQ2_S || kType == IQ1_M;
    constexpr int sub = kType == Q2_K || kType == Q3_K || kType == Q6_K || short_grid ? kSub16 : kSub32;
    const int16_t* sums = sub == kSub16 ? x.sums[at].by16 : x.sums[at].by32;
    int scaled = 0, minimum = 0;
    for (int s = 0; s < 256 / sub; ++s) {
      scaled += u.sc[s] * dot<sub>(u.q + sub * s, q + sub * s);
      minimum += u.mn[s] * sums[s];
    }
    return x.d[at] * (u.d * static_cast<float>(scaled) - u.dmin * static_cast<float>(minimum));
  }
}

// Row `lane` of a group block of `lanes` rows back in ggml's order.
template <Type kType>
void take_row(const uint8_t* group, int lanes, int lane, uint8_t* block) {
  constexpr const Format& f = *find_format(kType);
  for (const Field& field : f.fields) {
    for (int at = 0; at < field.length; at += field.unit) {
      std::memcpy(block + field.offset + at, group + lanes * (field.offset + at) + lane * field.unit, field.unit);
    }
  }
}

// A block's weights in the order of x.
template <Type kType>
void unpack_for(const uint8_t* b, Unpacked& u) {
  unpack<kType>(b, u);
  if constexpr (rounding_of(*find_format(kType)) == Rounding::crossed) {
    for (int e = 0; e < find_format(kType)->elements; e += 32) cross(u.q + e);
  }
}

template <Type kType>
void multiply(const Weights& w, const Activations& x, int64_t first, int64_t last, float* y) {
  constexpr int bytes = find_format(kType)->bytes;
  Unpacked u;
  uint8_t block[bytes];
  for (int64_t row = kRows * first; row < kRows * last && row < w.out; ++row) {
    for (int64_t t = 0; t < x.rows; ++t) y[t * w.out + row] = 0;
    for (int64_t b = 0; b < w.blocks; ++b) {
      if (w.lanes > 1) {
        const uint8_t* group = w.data + (row / w.lanes * w.blocks + b) * w.lanes * bytes;
        take_row<kType>(group, w.lanes, static_cast<int>(row % w.lanes), block);
        unpack_for<kType>(block, u);
      } else {
        unpack_for<kType>(w.data + (row * w.blocks + b) * bytes, u);
      }
      for (int64_t t = 0; t < x.rows; ++t) y[t * w.out + row] += dot_block<kType>(u, x, t, b);
    }
  }
}

// Plain numbers: eight sums, of every eighth column, which compilers make vectors of.
template <Type kType>
float number(const uint8_t* at) {
  if constexpr (kType == F16) return half(at);
  uint32_t bits;
  if constexpr (kType == F32) std::memcpy(&bits, at, 4);
  else bits = static_cast<uint32_t>(at[0] | at[1] << 8) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

template <Type kType>
void multiply_numbers(const Weights& w, const Activations& x, int64_t first, int64_t last, float* y) {
  constexpr int size = find_format(kType)->bytes, kRun = 256;
  float weights[kRun];
  for (int64_t row = kRows * first; row < kRows * last && row < w.out; ++row) {
    const uint8_t* at = w.data + (row / w.lanes * w.blocks * w.lanes + row % w.lanes) * size;
    for (int64_t t = 0; t < x.rows; ++t) y[t * w.out + row] = 0;
    for (int64_t column = 0; column < x.width; column += kRun) {
      const int64_t columns = x.width - column < kRun ? x.width - column : kRun;
      for (int64_t c = 0; c < columns; ++c) weights[c] = number<kType>(at + (column + c) * w.lanes * size);
      for (int64_t t = 0; t < x.rows; ++t) {
        const float* values = x.values + t * x.width + column;
        float sums[8] = {};
        int64_t c = 0;
        for (; c + 8 <= columns; c += 8) {
          for (int i = 0; i < 8; ++i) sums[i] += weights[c + i] * values[c + i];
        }
        for (; c < columns; ++c) sums[c % 8] += weights[c] * values[c];
        y[t * w.out + row] += ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
      }
    }
  }
}

Multiply find(Type type) {
  switch (type) {
    case Q4_0: return multiply<Q4_0>;
    case Q4_1: return multiply<Q4_1>;
    case Q5_0: return multiply<Q5_0>;
    case Q5_1: return multiply<Q5_1>;
    case Q8_0: return multiply<Q8_0>;
    case Q2_K: return multiply<Q2_K>;
    case Q3_K: return multiply<Q3_K>;
    case Q4_K: return multiply<Q4_K>;
    case Q5_K: return multiply<Q5_K>;
    case Q6_K: return multiply<Q6_K>;
    case IQ2_XXS: return multiply<IQ2_XXS>;
    case IQ2_XS: return multiply<IQ2_XS>;
    case IQ2_S: return multiply<IQ2_S>;
    case IQ3_XXS: return multiply<IQ3_XXS>;
    case IQ3_S: return multiply<IQ3_S>;
    case IQ1_S: return multiply<IQ1_S>;
    case IQ1_M: return multiply<IQ1_M>;
    case IQ4_NL: return multiply<IQ4_NL>;
    case IQ4_XS: return multiply<IQ4_XS>;
    case MXFP4: return multiply<MXFP4>;
    case Q1_0: return multiply<Q1_0>;
    case Q2_0: return multiply<Q2_0>;
    case TQ1_0: return multiply<TQ1_0>;
    case TQ2_0: return multiply<TQ2_0>;
    case NVFP4: return multiply<NVFP4>;
    case F32: return multiply_numbers<F32>;
    case F16: return multiply_numbers<F16>;
    case BF16: return multiply_numbers<BF16>;
  }
  return nullptr;
}

}  // namespace

const Kernels kPortable = {kRows, quantize, find};

}  // namespace packlight
