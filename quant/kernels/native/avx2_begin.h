// Opens the part of a file that is compiled for AVX2, FMA and F16C; avx2_end.h closes it. No include guard.
//
// For every function between them, and none of the standard headers': an inline function compiled for AVX2 must not be
// the copy that the linker keeps for everyone. Called only where the CPU has all three.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
