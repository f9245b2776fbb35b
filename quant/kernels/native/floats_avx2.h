// Vectors of floats with AVX2 and FMA. Included inside a file's namespace and target, after <immintrin.h>.

constexpr int kLanes = 8;
using Floats = __m256;

inline Floats splat(float x) { return _mm256_set1_ps(x); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
inline Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats maximum(Floats a, Floats b) { return _mm256_max_ps(a, b); }  // b where one is NaN
