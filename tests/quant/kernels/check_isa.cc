// What an x86 CPU is found to have, from words as processors and systems give them. It is only compiled.
#include "isa.h"

namespace packlight {
namespace {

constexpr uint32_t kLeaf1 = 1u << 12 | 1u << 28 | 1u << 29;                                // FMA, AVX, F16C
constexpr uint32_t kAvx2 = 1u << 5, k512 = kAvx2 | 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
constexpr uint32_t kVnni = 1u << 11;
constexpr uint64_t kYmm = 0x07, kZmm = 0xE7;

constexpr bool gives(Cpu cpu, bool avx2, bool avx512) {
  return cpu.avx2 == avx2 && cpu.avx512 == avx512 && !cpu.neon;
}

static_assert(gives(x86(kLeaf1, k512, kVnni, kZmm), true, true), "Ice Lake, Zen 4");
static_assert(gives(x86(kLeaf1, k512, 0, kZmm), true, false), "Skylake: no VNNI");
static_assert(gives(x86(kLeaf1, k512, kVnni, kYmm), true, false), "a system that does not keep ZMM registers");
static_assert(gives(x86(kLeaf1, k512, kVnni, 0x27), true, false), "nor the upper sixteen of them");
static_assert(gives(x86(kLeaf1, kAvx2 | 1u << 16, kVnni, kZmm), true, false), "AVX-512F alone");
static_assert(gives(x86(kLeaf1, kAvx2, 0, kYmm), true, false), "Haswell, Zen 3");
static_assert(gives(x86(kLeaf1, 0, 0, kYmm), false, false), "Sandy Bridge");
static_assert(gives(x86(kLeaf1 & ~(1u << 29), k512, kVnni, kZmm), false, false), "no F16C");
static_assert(gives(x86(kLeaf1 & ~(1u << 12), k512, kVnni, kZmm), false, false), "no FMA");
static_assert(gives(x86(kLeaf1, k512, kVnni, 0x03), false, false), "a system that does not keep YMM registers");
static_assert(gives(x86(kLeaf1, k512, kVnni, 0), false, false), "nor says what it keeps");
static_assert(gives(x86(0, 0, 0, kZmm), false, false), "nothing");
static_assert(!x86(kLeaf1, k512, kVnni, kZmm).bf16, "Ice Lake");
static_assert(x86(kLeaf1, k512, kVnni, kZmm, 1u << 5).bf16, "Zen 4");
static_assert(!x86(kLeaf1, k512, kVnni, kYmm, 1u << 5).bf16, "where the system does not keep ZMM registers");

}  // namespace
}  // namespace packlight
