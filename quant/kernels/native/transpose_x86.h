// Interleaving words of 8 rows at a time. Included inside a namespace and target.

constexpr bool kTransposes = true;

// 8 x 8 words, transposed: word i of row r to word r of line i; lines are `stride` bytes apart.
inline void transpose(const uint8_t* const* rows, int64_t from, uint8_t* to, int64_t stride) {
  __m256i a[8], b[8];
  for (int r = 0; r < 8; ++r) a[r] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[r] + from));
  for (int r = 0; r < 8; r += 2) {
    b[r] = _mm256_unpacklo_epi32(a[r], a[r + 1]);
    b[r + 1] = _mm256_unpackhi_epi32(a[r], a[r + 1]);
  }
  for (int r = 0; r < 8; r += 4) {
    a[r] = _mm256_unpacklo_epi64(b[r], b[r + 2]);
    a[r + 1] = _mm256_unpackhi_epi64(b[r], b[r + 2]);
    a[r + 2] = _mm256_unpacklo_epi64(b[r + 1], b[r + 3]);
    a[r + 3] = _mm256_unpackhi_epi64(b[r + 1], b[r + 3]);
  }
  for (int r = 0; r < 4; ++r) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + stride * r), _mm256_permute2x128_si256(a[r], a[r + 4], 0x20));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + stride * (r + 4)),
                        _mm256_permute2x128_si256(a[r], a[r + 4], 0x31));
  }
}
