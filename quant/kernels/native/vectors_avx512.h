// Vectors of 16 rows: what sources.h and dot_avx512.h are written in. Included inside a namespace and target.

constexpr int kLanes = 16;  // of 32 bits, a row each
using Ints = __m512i;
using Floats = __m512;

inline Ints load(const void* p) { return _mm512_loadu_si512(p); }
inline void store(void* p, Ints v) { _mm512_storeu_si512(p, v); }
inline Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
inline void store_floats(float* p, Floats v) { _mm512_storeu_ps(p, v); }
inline Ints widen_u8_16(const uint8_t* p) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)p)); }
inline Ints widen_i8_16(const uint8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p)); }
inline Ints widen_u16_32(const uint8_t* p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
inline Ints widen_u8_32(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline Floats halves(const uint8_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
// Bytes 0 EEEEMMM as floats, 2^-7 of their value; 0x7F is 0, and the top bit of others is ignored.
inline Floats eighths(const uint8_t* p) {
  const __m256i bits = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p));
  const __m256i half = _mm256_and_si256(_mm256_slli_epi16(bits, 7), _mm256_set1_epi16(0x3F80));
  return _mm512_cvtph_ps(_mm256_andnot_si256(_mm256_cmpeq_epi16(bits, _mm256_set1_epi16(0x7F)), half));
}

inline Ints zero() { return _mm512_setzero_si512(); }
inline Ints splat8(int v) { return _mm512_set1_epi8(static_cast<char>(v)); }
inline Ints splat16(int v) { return _mm512_set1_epi16(static_cast<short>(v)); }
inline Ints splat32(int v) { return _mm512_set1_epi32(v); }
// The same 16 bytes over and over.
template <class... B>
inline Ints bytes16(B... b) { return _mm512_broadcast_i32x4(_mm_setr_epi8(static_cast<char>(b)...)); }
inline Ints add8(Ints a, Ints b) { return _mm512_add_epi8(a, b); }
inline Ints sub8(Ints a, Ints b) { return _mm512_sub_epi8(a, b); }
inline Ints sub16(Ints a, Ints b) { return _mm512_sub_epi16(a, b); }
inline Ints add32(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints sub32(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
template <int k> inline Ints shr16(Ints v) { return _mm512_srli_epi16(v, k); }
template <int k> inline Ints shl16(Ints v) { return _mm512_slli_epi16(v, k); }
template <int k> inline Ints sar16(Ints v) { return _mm512_srai_epi16(v, k); }
template <int k> inline Ints shr32(Ints v) { return _mm512_srli_epi32(v, k); }
template <int k> inline Ints shl32(Ints v) { return _mm512_slli_epi32(v, k); }
inline Ints shr16_by(Ints v, int k) { return _mm512_srl_epi16(v, _mm_cvtsi32_si128(k)); }
inline Ints shl32_each(Ints v, Ints k) { return _mm512_sllv_epi32(v, k); }
inline Ints shuffle(Ints v, Ints order) { return _mm512_shuffle_epi8(v, order); }  // within 16 bytes
inline Ints bytes_with(Ints v, Ints bits) { return _mm512_movm_epi8(_mm512_test_epi8_mask(v, bits)); }  // one bit a byte
// How many of kA < kB each signed byte exceeds.
template <int kA, int kB>
inline Ints exceeded8(Ints v) {
  const Ints some = _mm512_maskz_mov_epi8(_mm512_cmpgt_epi8_mask(v, splat8(kA)), splat8(1));
  return _mm512_mask_mov_epi8(some, _mm512_cmpgt_epi8_mask(v, splat8(kB)), splat8(2));
}
// Where its byte has the bit, `sum` - v, elsewhere v.
inline Ints mirrored(Ints v, int sum, Ints bytes, Ints bits) {
  return _mm512_mask_sub_epi8(v, _mm512_test_epi8_mask(bytes, bits), splat8(sum), v);
}
inline Ints where_less32(Ints a, Ints b, Ints yes, Ints no) {
  return _mm512_mask_blend_epi32(_mm512_cmplt_epi32_mask(a, b), no, yes);
}

inline Floats zero_floats() { return _mm512_setzero_ps(); }
inline Floats splat_float(float v) { return _mm512_set1_ps(v); }
inline Floats bits_as_floats(Ints v) { return _mm512_castsi512_ps(v); }
inline Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
inline Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats fused_minus(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }

template <int k> inline Ints sar32(Ints v) { return _mm512_srai_epi32(v, k); }
inline Ints times32(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
// c + the products of 4 neighbouring bytes, weights unsigned.
constexpr bool kUnsignedWeights = true;
inline Ints dot4(Ints w, Ints x, Ints c) { return _mm512_dpbusd_epi32(c, w, x); }

// c + the products of neighbouring int16.
inline Ints pairs_dot(Ints a, Ints b, Ints c) { return _mm512_dpwssd_epi32(c, a, b); }

// Keeps a value where the code has it: GCC 12 otherwise makes all products first and spills them, a third of the speed.
inline void keep(Ints& v) { asm volatile("" : "+v"(v)); }

inline void prefetch(const uint8_t* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0); }
