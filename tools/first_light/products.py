"""One product at a time: device time of each kernel from a profile, and wall time in a loop over a stack.

python -m tools.first_light.products      # writes OUT/products.json
"""

import collections
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from packlight.quant.matmul import matmul
from packlight.quant.qtensor import QTensor
from tools.first_light import common

SHAPES = ((14336, 4096), (4096, 4096), (4096, 14336), (2048, 5632))  # (out, in) of 8B and 1.1B models
REHEARSED = ((512, 512),)
REPEATS = 7


def cases() -> list[tuple[str, int, int, int]]:
    """(format, rows, out, in), those of one token first: XLA tunes each product of many rows for a while."""
    shapes = SHAPES if common.on_gpu() else REHEARSED
    found = []
    for qtype in ("Q4_K", "Q6_K", "Q8_0", "MXFP4", "IQ4_XS"):
        for shape in shapes if qtype == "Q4_K" else shapes[:2]:
            for rows in (1, 8) if qtype in ("Q4_K", "Q6_K") else (1,):
                found.append((qtype, rows, *shape))
    found += [("Q4_K", rows, *shape) for shape in shapes for rows in (512, 32)]
    found += [(qtype, 512, *shapes[0]) for qtype in ("Q6_K", "Q8_0")]
    return found


@functools.lru_cache(maxsize=1)  # products of one matrix stand side by side
def stacked(qtype: str, out: int, width: int) -> tuple[QTensor, int, int]:
    """A stack of matrices several times as large as the L2 cache, the bytes of one, and how many there are."""
    _, layout = common.path_and_layout()
    one = common.packed(common.weights(qtype, out, width, 0.02, seed=0), qtype, layout)
    wanted = 400 << 20 if common.on_gpu() else 1 << 20
    count = max(2, -(-wanted // one.nbytes))
    device = jax.device_put(one)
    stack = jnp.stack([jnp.roll(device, i, 0) for i in range(count)])
    return QTensor.of(stack, qtype, layout, out, width), one.nbytes, count


def kernels(profile: Any) -> dict[str, tuple[int, float]]:
    """The six kernels that take longest: name -> (runs, median microseconds)."""
    times: dict[str, list[float]] = collections.defaultdict(list)
    for on_stream, event in common.events(profile):
        if on_stream:
            times[event.name].append(event.duration_ns / 1e3)
    longest = sorted(times.items(), key=lambda item: -sum(item[1]))[:6]
    return {name: (len(each), statistics.median(each)) for name, each in longest}


def measure(qtype: str, rows: int, out: int, width: int) -> dict[str, Any]:
    path, _ = common.path_and_layout()
    w, nbytes, count = stacked(qtype, out, width)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(rows, width)), jnp.bfloat16)

    @jax.jit
    def every(x, w):
        zeros = jnp.zeros((rows, out), jnp.float32)
        return lax.fori_loop(0, count, lambda i, y: y + matmul(x, w, path, (i,)), zeros)

    every(x, w).block_until_ready()
    walls = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        every(x, w).block_until_ready()
        walls.append(time.perf_counter() - began)
    wall = statistics.median(walls) / count
    found = kernels(common.profiled(lambda: every(x, w).block_until_ready()))
    ours = sum(runs * each for name, (runs, each) in found.items() if "mosaic" in name.lower())
    kernel = ours / count * 1e-6 or wall
    limits = common.limits()
    return {
        "case": f"{qtype} {rows} rows {out}x{width}",
        "wall_us": wall * 1e6,
        "kernel_us": kernel * 1e6,
        "kernel_gb_s": nbytes / kernel / 1e9,
        "kernel_share_of_copy": nbytes / kernel / 1e9 / limits["read_gb_s"],
        "wall_share_of_copy": nbytes / wall / 1e9 / limits["read_gb_s"],
        "wall_share_of_gemm": 2 * rows * out * width / wall / 1e9 / limits["gemm_gflop_s"],
        "kernels": found,
    }


def main() -> None:
    print(common.limits())
    results = []
    for case in cases():
        try:
            made = measure(*case)
        except Exception as error:  # the other products are still worth measuring
            print(*case, f"{type(error).__name__}: {error}"[:400], flush=True)
            continue
        results.append(made)
        common.save("products.json", {"limits": common.limits(), "results": results})
        print(
            f"{made['case']:<28} wall {made['wall_us']:8.1f} us  kernel {made['kernel_us']:8.1f} us"
            f"  of copy: kernel {made['kernel_share_of_copy']:.2f} wall {made['wall_share_of_copy']:.2f}"
            f"  of gemm {made['wall_share_of_gemm']:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
