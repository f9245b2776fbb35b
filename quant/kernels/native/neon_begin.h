// Opens the part of a file that is compiled for NEON with the dot product; neon_end.h closes it. No include guard.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
