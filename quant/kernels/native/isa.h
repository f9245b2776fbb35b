// Which instruction sets there are kernels for, and which of them this CPU has.
#ifndef PACKLIGHT_ISA_H_
#define PACKLIGHT_ISA_H_

#include <cstdint>
#include <initializer_list>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace packlight {

// The numbers are native_ops.ISAS's.
enum class Isa : int64_t { best = 0, portable = 1, avx2 = 2, avx512 = 3, neon = 4 };

inline bool has(Isa isa) {
  switch (isa) {
    case Isa::best:
    case Isa::portable: return true;
#if defined(__x86_64__)
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::avx512:
      return has(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
#elif defined(__aarch64__) && defined(__APPLE__)
    case Isa::neon: return true;  // every Apple processor with this architecture has the dot product
#elif defined(__aarch64__) && defined(__linux__)
    case Isa::neon: return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#endif
    default: return false;
  }
}

// `asked`, or for `best` the fastest there is.
inline Isa chosen(Isa asked) {
  if (asked != Isa::best) return asked;
  for (const Isa isa : {Isa::avx512, Isa::avx2, Isa::neon}) {
    if (has(isa)) return isa;
  }
  return Isa::portable;
}

}  // namespace packlight

#endif  // PACKLIGHT_ISA_H_
