"""What this machine can do, measured: memory read bandwidth and the rate of XLA's float32 matrix product.

    python bench/limits.py [THREADS] [--gib=1]

A process of its own, so that its gigabyte counts in nobody's memory; prints one JSON object. Reading is OpenBLAS's dot
product of an array with itself, each thread on its part, best of 6 passes: on two cores where a C++ loop of AVX2 loads
read 42-45 GB/s this reads 41-45.
"""

import argparse
import concurrent.futures
import json
import os
import time

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the threads are ours

import numpy as np

M, K, N = 512, 2048, 5632  # a prompt's tokens, embedding and feed-forward width of TinyLlama-1.1B


def read_gb_s(threads: int, gib: float, passes: int = 6) -> float:
    """GB/s of reading `gib` GiB with `threads` threads, best of `passes`."""
    parts = np.array_split(np.ones(int(gib * (1 << 28)), np.float32), threads)
    best = 0.0
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in range(passes):
            began = time.perf_counter()
            list(pool.map(lambda part: part @ part, parts))
            best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - began))
    return best / 1e9


def gemm_gflop_s(passes: int = 6) -> float:
    """GFLOP/s of XLA's product x (M, K) with a weight (N, K), float32, on jax's default device, best of `passes`."""
    import jax

    product = jax.jit(lambda x, w: jax.lax.dot_general(x, w, (((1,), (1,)), ((), ()))))
    x, w = (jax.device_put(np.ones(shape, np.float32)) for shape in ((M, K), (N, K)))
    product(x, w).block_until_ready()
    best = float("inf")
    for _ in range(passes):
        began = time.perf_counter()
        product(x, w).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2 * M * K * N / best / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("threads", type=int, nargs="?", default=os.cpu_count())
    parser.add_argument("--gib", type=float, default=1.0)
    options = parser.parse_args()
    measured = {"read_gb_s": read_gb_s(options.threads, options.gib), "gemm_gflop_s": gemm_gflop_s()}
    print(json.dumps(measured | {"gemm": f"f32 {M}x{K}x{N}", "threads": options.threads}))


if __name__ == "__main__":
    main()
