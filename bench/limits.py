"""What this machine can do, measured: memory read bandwidth and the rate of XLA's float32 matrix product.

    python bench/limits.py THREADS      # then an empty JSON object a line on stdin, one answer a line on stdout

A process of its own, so that its gigabyte counts in nobody's memory. `bench` asks it once a repetition, because the
speed of a shared machine drifts, and keeps the best. Reading is numpy's maximum of a float32 array, each thread on its
part: on two cores where a C++ loop of AVX2 loads read 48 and, when the neighbours slept, 79 GB/s, this read 47 and 74;
OpenBLAS's dot product 38 both times.
"""

import concurrent.futures
import json
import os
import sys
import time
from collections.abc import Callable

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

GIB = 1 << 30
M, K, N = 512, 2048, 5632  # a prompt's tokens, embedding and feed-forward width of TinyLlama-1.1B
PASSES = 3


def reader(threads: int) -> Callable[[], object]:
    """A function that reads 1 GiB with `threads` threads."""
    parts = np.array_split(np.ones(GIB // 4, np.float32), threads)
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    return lambda: list(pool.map(np.max, parts))


def multiplier() -> Callable[[], object]:
    """A function that multiplies x (M, K) with a weight (N, K), float32, by XLA on all cores."""
    product = jax.jit(lambda x, w: jax.lax.dot_general(x, w, (((1,), (1,)), ((), ()))))
    x, w = (jax.device_put(np.ones(shape, np.float32)) for shape in ((M, K), (N, K)))
    return lambda: product(x, w).block_until_ready()


def best(run: Callable[[], object]) -> float:
    """Seconds of the fastest of PASSES."""
    seconds = []
    for _ in range(PASSES):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main() -> None:
    read, multiply = reader(int(sys.argv[1])), multiplier()
    read()
    multiply()
    for _ in sys.stdin:
        answer = {"read_gb_s": GIB / best(read) / 1e9, "gemm_gflop_s": 2 * M * K * N / best(multiply) / 1e9}
        print(json.dumps(answer | {"gemm": f"f32 {M}x{K}x{N}"}), flush=True)


if __name__ == "__main__":
    main()
