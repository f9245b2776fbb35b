// Plain numbers with AVX2.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "weights.h"
#include "workspace.h"

#include "avx2_begin.h"

namespace packlight {
namespace {

#include "floats_avx2.h"

constexpr int kManyGroups = 2;  // with 6 tokens 12 sums, of 16 registers
inline __m128i words(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline Floats load_f16(const uint8_t* p) { return _mm256_cvtph_ps(words(p)); }
inline Floats load_bf16(const uint8_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words(p)), 16));
}

#include "numbers.h"
#include "read_numbers.h"

}  // namespace

Multiply avx2_numbers(Type type) { return find_numbers(type); }

}  // namespace packlight

#include "avx2_end.h"

#endif  // defined(__x86_64__)
