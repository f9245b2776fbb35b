// Opens the part of a file that is compiled for AVX-512 with VNNI and BF16, like avx512_begin.h; avx512_end.h closes it.
//
// For every function between them, and none of the standard headers': an inline function compiled for it must not be
// the copy that the linker keeps for everyone. Called only where isa.h finds it.
#if defined(__clang__)
#if __clang_major__ >= 18 && __clang_major__ <= 21 && !defined(__apple_build_version__)
// these may have been told to do without registers of 512 bits, as by `zig c++`, whose CPUs list all that they lack
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,evex512"))), apply_to = function)
#else
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16"))), apply_to = function)
#endif
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")
#endif
