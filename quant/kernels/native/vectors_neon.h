// Vectors of 4 rows: what sources.h and dot_words.h are written in, with NEON and its dot product. Included inside a
// namespace and target.

constexpr int kLanes = 4;  // of 32 bits, a row each
using Ints = uint8x16_t;
using Floats = float32x4_t;

inline uint16x8_t u16(Ints v) { return vreinterpretq_u16_u8(v); }
inline int16x8_t s16(Ints v) { return vreinterpretq_s16_u8(v); }
inline uint32x4_t u32(Ints v) { return vreinterpretq_u32_u8(v); }
inline int32x4_t s32(Ints v) { return vreinterpretq_s32_u8(v); }
inline Ints ints(uint16x8_t v) { return vreinterpretq_u8_u16(v); }
inline Ints ints(int16x8_t v) { return vreinterpretq_u8_s16(v); }
inline Ints ints(uint32x4_t v) { return vreinterpretq_u8_u32(v); }
inline Ints ints(int32x4_t v) { return vreinterpretq_u8_s32(v); }

inline Ints load(const void* p) { return vld1q_u8(static_cast<const uint8_t*>(p)); }
inline void store(void* p, Ints v) { vst1q_u8(static_cast<uint8_t*>(p), v); }
inline Floats load_floats(const float* p) { return vld1q_f32(p); }
inline void store_floats(float* p, Floats v) { vst1q_f32(p, v); }
inline uint8x8_t four_bytes(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return vreinterpret_u8_u32(vdup_n_u32(word));
}
inline Ints widen_u8_16(const uint8_t* p) { return ints(vmovl_u8(vld1_u8(p))); }
inline Ints widen_i8_16(const uint8_t* p) { return ints(vmovl_s8(vreinterpret_s8_u8(vld1_u8(p)))); }
inline Ints widen_u16_32(const uint8_t* p) { return ints(vmovl_u16(vreinterpret_u16_u8(vld1_u8(p)))); }
inline Ints widen_u8_32(const uint8_t* p) { return ints(vmovl_u16(vget_low_u16(vmovl_u8(four_bytes(p))))); }
inline Floats halves(const uint8_t* p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
// Bytes 0 EEEEMMM as floats, 2^-7 of their value; 0x7F is 0, and the top bit of others is ignored.
inline Floats eighths(const uint8_t* p) {
  const uint16x4_t bits = vget_low_u16(vmovl_u8(four_bytes(p)));
  const uint16x4_t half = vand_u16(vshl_n_u16(bits, 7), vdup_n_u16(0x3F80));
  return vcvt_f32_f16(vreinterpret_f16_u16(vbic_u16(half, vceq_u16(bits, vdup_n_u16(0x7F)))));
}

inline Ints zero() { return vdupq_n_u8(0); }
inline Ints splat8(int v) { return vdupq_n_u8(static_cast<uint8_t>(v)); }
inline Ints splat16(int v) { return ints(vdupq_n_s16(static_cast<int16_t>(v))); }
inline Ints splat32(int v) { return ints(vdupq_n_s32(v)); }
template <class... B>
inline Ints bytes16(B... b) {
  const uint8_t values[16] = {static_cast<uint8_t>(b)...};
  return vld1q_u8(values);
}
inline Ints add8(Ints a, Ints b) { return vaddq_u8(a, b); }
inline Ints sub8(Ints a, Ints b) { return vsubq_u8(a, b); }
inline Ints sub16(Ints a, Ints b) { return ints(vsubq_s16(s16(a), s16(b))); }
inline Ints add32(Ints a, Ints b) { return ints(vaddq_s32(s32(a), s32(b))); }
inline Ints sub32(Ints a, Ints b) { return ints(vsubq_s32(s32(a), s32(b))); }
inline Ints times32(Ints a, Ints b) { return ints(vmulq_s32(s32(a), s32(b))); }
template <int k> inline Ints shr16(Ints v) { return ints(vshrq_n_u16(u16(v), k)); }
template <int k> inline Ints shl16(Ints v) { return ints(vshlq_n_u16(u16(v), k)); }
template <int k> inline Ints sar16(Ints v) { return ints(vshrq_n_s16(s16(v), k)); }
template <int k> inline Ints sar32(Ints v) { return ints(vshrq_n_s32(s32(v), k)); }
template <int k> inline Ints shl32(Ints v) { return ints(vshlq_n_u32(u32(v), k)); }
template <int k> inline Ints shr32(Ints v) {
  if constexpr (k > 0) v = ints(vshrq_n_u32(u32(v), k));  // the instruction has no shift by 0
  return v;
}
inline Ints shr16_by(Ints v, int k) { return ints(vshlq_u16(u16(v), vdupq_n_s16(static_cast<int16_t>(-k)))); }
inline Ints shl32_each(Ints v, Ints k) { return ints(vshlq_u32(u32(v), s32(k))); }
inline Ints shuffle(Ints v, Ints order) { return vqtbl1q_u8(v, order); }
inline Ints bytes_with(Ints v, Ints bits) { return vtstq_u8(v, bits); }  // of one bit a byte: 0 or -1
// How many of kA < kB each signed byte exceeds.
template <int kA, int kB>
inline Ints exceeded8(Ints v) {
  const int8x16_t b = vreinterpretq_s8_u8(v);
  return sub8(sub8(zero(), vcgtq_s8(b, vdupq_n_s8(kA))), vcgtq_s8(b, vdupq_n_s8(kB)));
}
// Where its byte has the bit, `sum` - v, elsewhere v.
inline Ints mirrored(Ints v, int sum, Ints bytes, Ints bits) {
  const Ints there = bytes_with(bytes, bits);
  return add8(v ^ there, there & splat8(sum + 1));
}
inline Ints where_less32(Ints a, Ints b, Ints yes, Ints no) { return vbslq_u8(ints(vcltq_s32(s32(a), s32(b))), yes, no); }

inline Floats zero_floats() { return vdupq_n_f32(0); }
inline Floats splat_float(float v) { return vdupq_n_f32(v); }
inline Floats bits_as_floats(Ints v) { return vreinterpretq_f32_u8(v); }
inline Floats to_floats(Ints v) { return vcvtq_f32_s32(s32(v)); }
inline Floats times(Floats a, Floats b) { return vmulq_f32(a, b); }
inline Floats fused(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
inline Floats fused_minus(Floats a, Floats b, Floats c) { return vfmsq_f32(c, a, b); }

// c + the products of 4 neighbouring bytes, both signed: no unsigned quant is above 63.
constexpr bool kUnsignedWeights = false;
inline Ints dot4(Ints w, Ints x, Ints c) {
  return ints(vdotq_s32(s32(c), vreinterpretq_s8_u8(w), vreinterpretq_s8_u8(x)));
}
// c + the products of neighbouring int16.
inline Ints pairs_dot(Ints a, Ints b, Ints c) {
  const int32x4_t low = vmull_s16(vget_low_s16(s16(a)), vget_low_s16(s16(b))), high = vmull_high_s16(s16(a), s16(b));
  return ints(vaddq_s32(s32(c), vpaddq_s32(low, high)));
}

constexpr bool kTransposes = false;  // interleaving goes word by word
inline void transpose(const uint8_t* const*, int64_t, uint8_t*, int64_t) {}

inline void keep(Ints& v) { asm volatile("" : "+w"(v)); }
inline void prefetch(const uint8_t* from) { __builtin_prefetch(from); }
