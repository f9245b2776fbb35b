// Which instruction sets there are kernels for, and which of them this CPU has.
#ifndef PACKLIGHT_ISA_H_
#define PACKLIGHT_ISA_H_

#include <cstdint>
#include <initializer_list>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace packlight {

// The numbers are native_build.ISAS's.
enum class Isa : int64_t { best = 0, portable = 1, avx2 = 2, avx512 = 3, neon = 4, avx512bf16 = 5 };

// Instruction sets of a CPU, each with all that its kernels use.
struct Cpu {
  bool avx2 = false, avx512 = false, neon = false, bf16 = false;
};

// What an x86 CPU has, by its own words: CPUID's leaves 1 and 7, of that also part 1, and XCR0, which says whose registers
// the system keeps when it switches threads. `__builtin_cpu_supports` knows other names in each compiler, and answers no
// to all of them where the compiler comes without the run-time library that fills its table.
constexpr Cpu x86(uint32_t leaf1_ecx, uint32_t leaf7_ebx, uint32_t leaf7_ecx, uint64_t xcr0,
                  uint32_t leaf71_eax = 0) {
  constexpr uint32_t kFma = 1u << 12, kAvx = 1u << 28, kF16c = 1u << 29;                               // leaf 1, ecx
  constexpr uint32_t kAvx2 = 1u << 5, kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31;  // leaf 7, ebx
  constexpr uint32_t kVnni = 1u << 11;                                                                 // leaf 7, ecx
  constexpr uint32_t kBf16 = 1u << 5;                                                                  // leaf 7.1, eax
  constexpr uint64_t kYmm = 0x06, kZmm = 0xE6;  // XMM and the upper halves of YMM; with masks and both parts of ZMM
  constexpr uint32_t kWant1 = kFma | kAvx | kF16c, kWant512 = kF | kDq | kBw | kVl;
  Cpu cpu;
  cpu.avx2 = (leaf1_ecx & kWant1) == kWant1 && (leaf7_ebx & kAvx2) && (xcr0 & kYmm) == kYmm;
  cpu.avx512 = cpu.avx2 && (leaf7_ebx & kWant512) == kWant512 && (leaf7_ecx & kVnni) && (xcr0 & kZmm) == kZmm;
  cpu.bf16 = cpu.avx512 && (leaf71_eax & kBf16);
  return cpu;
}

inline Cpu this_cpu() {
#if defined(__x86_64__)
  constexpr uint32_t kOsxsave = 1u << 27;  // the system lets programs read XCR0
  uint32_t eax, ebx, ecx, edx, leaf1_ecx;
  if (!__get_cpuid(1, &eax, &ebx, &leaf1_ecx, &edx) || !(leaf1_ecx & kOsxsave)) return {};
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return {};
  uint32_t leaf71_eax = 0, b, c, d;
  if (eax > 0) __cpuid_count(7, 1, leaf71_eax, b, c, d);
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return x86(leaf1_ecx, ebx, ecx, uint64_t{high} << 32 | low, leaf71_eax);
#elif defined(__aarch64__) && defined(__APPLE__)
  return {false, false, true};  // every Apple processor with this architecture has the dot product
#elif defined(__aarch64__) && defined(__linux__)
  return {false, false, (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0};
#else
  return {};
#endif
}

inline bool has(Isa isa) {
  static const Cpu cpu = this_cpu();  // once: on a virtual machine CPUID takes a trip to the host
  switch (isa) {
    case Isa::best:
    case Isa::portable: return true;
    case Isa::avx2: return cpu.avx2;
    case Isa::avx512: return cpu.avx512;
    case Isa::neon: return cpu.neon;
    case Isa::avx512bf16: return cpu.bf16;
  }
  return false;
}

// Whether `isa` is a number of one that this CPU has.
inline bool is_here(int64_t isa) {
  return isa >= 0 && isa <= static_cast<int64_t>(Isa::avx512bf16) && has(static_cast<Isa>(isa));
}

// `asked`, or for `best` the fastest there is. The unit for bfloat16 is for products alone: `chosen_for_products`.
inline Isa chosen(Isa asked) {
  if (asked == Isa::avx512bf16) return Isa::avx512;
  if (asked != Isa::best) return asked;
  for (const Isa isa : {Isa::avx512, Isa::avx2, Isa::neon}) {
    if (has(isa)) return isa;
  }
  return Isa::portable;
}

inline Isa chosen_for_products(Isa asked) {
  const bool unit = asked == Isa::avx512bf16 || (asked == Isa::best && has(Isa::avx512bf16));
  return unit ? Isa::avx512bf16 : chosen(asked);
}

}  // namespace packlight

#endif  // PACKLIGHT_ISA_H_
