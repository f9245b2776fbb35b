"""The instruction sets that native kernels are tested with."""

from packlight.quant.kernels.native_ops import ISAS, has


def isas() -> list[str]:
    """Those that this CPU has. The unit for bfloat16 is for products alone."""
    return [isa for isa in ISAS[1:] if has(isa) and isa != "avx512bf16"]
