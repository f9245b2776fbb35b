"""Chips that executables can be compiled for without having one: memory, bandwidth, peak. Imports no jax.

The numbers are the vendors' datasheets', GB and TB as powers of ten; what a real chip leaves a program is a few
percent less of each.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    device_kind: jax's name of it. memory: bytes. bandwidth: bytes/s. flops: of dense bfloat16 products, per second.
    topology: of the smallest machine that has it, as the compiler names it. host_link: bytes/s from the host's memory;
    None: nobody publishes it.
    """

    platform: str
    device_kind: str
    memory: float
    bandwidth: float
    flops: float
    topology: str
    source: str
    host_link: float | None = None


# "NVIDIA H100 80GB HBM3" is the SXM5 board. NVIDIA's datasheets state peaks with sparsity, twice the dense ones below,
# and 128 GB/s of PCIe 5 for both directions together.
CHIPS = {
    "cuda:h100": Chip(
        *("gpu", "NVIDIA H100 80GB HBM3", 80e9, 3.35e12, 989.5e12, "1x1x1"),
        "NVIDIA H100 Tensor Core GPU datasheet: SXM5",
        64e9,
    ),
    "cuda:h200": Chip(
        *("gpu", "NVIDIA H200", 141e9, 4.8e12, 989.5e12, "1x1x1"),
        "NVIDIA H200 Tensor Core GPU datasheet: SXM",
        64e9,
    ),
    "tpu:v5e": Chip(
        *("tpu", "TPU v5 lite", 16e9, 819e9, 197e12, "1x1"),
        "https://docs.cloud.google.com/tpu/docs/v5e",
    ),
    "tpu:v5p": Chip(
        *("tpu", "TPU v5", 95e9, 2765e9, 459e12, "2x2x1"),
        "https://docs.cloud.google.com/tpu/docs/v5p",
    ),
    "tpu:v6e": Chip(
        *("tpu", "TPU v6 lite", 32e9, 1638e9, 918e12, "1x1"),
        "https://docs.cloud.google.com/tpu/docs/v6e",
    ),
}


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least time that a chip can take. limit: "memory", "compute" or "host link", whichever takes it."""

    seconds: float
    limit: str


def roofline(chip: Chip, moved: float, flops: float, copied: float = 0) -> Roofline:
    """For `moved` bytes of its memory, `flops` operations, and `copied` bytes from the host's memory, which count where
    the link's rate is known. Source: Williams, Waterman, Patterson, "Roofline" (CACM 52, 2009).
    """
    times = {"memory": moved / chip.bandwidth, "compute": flops / chip.flops}
    if copied and chip.host_link is not None:
        times["host link"] = copied / chip.host_link
    limit = max(times, key=lambda name: times[name])
    return Roofline(times[limit], limit)
