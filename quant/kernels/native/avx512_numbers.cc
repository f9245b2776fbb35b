// Plain numbers with AVX-512.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "weights.h"
#include "workspace.h"

#include "avx512_begin.h"

namespace packlight {
namespace {

#include "floats_avx512.h"

constexpr int kManyGroups = 4;  // with 6 tokens 24 sums, of 32 registers
inline __m256i words(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Floats load_f16(const uint8_t* p) { return _mm512_cvtph_ps(words(p)); }
inline Floats load_bf16(const uint8_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words(p)), 16));
}

#include "numbers.h"
#include "read_numbers.h"

}  // namespace

Multiply avx512_numbers(Type type) { return find_numbers(type); }

}  // namespace packlight

#include "avx512_end.h"

#endif  // defined(__x86_64__)
