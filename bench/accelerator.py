"""What the accelerator that runs packlight can do, measured: copy bandwidth and the rate of XLA's bfloat16 product.

In the process that runs packlight, whose memory jax has taken already; for CPUs `bench/limits.py` has a process of its
own. Each pass repeats its work within one program, so that launches do not count.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from packlight.model.weights.placement import Device

GIB = 1 << 30
SIDE = 8192  # of the square matrices
ROUNDS = 8  # of a pass
PASSES = 3


class Accelerator:
    """The limits of one device. nbytes: of the array that is copied; side: of the matrices that are multiplied.

    Answers as the worker of `bench/limits.py` does.
    """

    def __init__(self, device: Device, nbytes: int = GIB, side: int = SIDE):
        self._nbytes, self._side = nbytes, side

        @functools.partial(jax.jit, donate_argnums=0)
        def copy(x: jax.Array) -> jax.Array:
            return jax.lax.fori_loop(0, ROUNDS, lambda _, x: x + jnp.float32(1), x)

        @jax.jit
        def product(x: jax.Array, w: jax.Array) -> jax.Array:
            return jax.lax.fori_loop(0, ROUNDS, lambda _, y: y @ w, x)

        self._copied = jax.device_put(jnp.zeros(nbytes // 4, jnp.float32), device)
        values = jax.random.normal(jax.random.key(0), (side, side), jnp.float32) / side**0.5  # products keep this size
        self._matrix = jax.device_put(values.astype(jnp.bfloat16), device)
        self._copy, self._product = copy, product
        self._run_copy()
        self._run_product()

    def _run_copy(self) -> None:
        self._copied = self._copy(self._copied).block_until_ready()

    def _run_product(self) -> None:
        self._product(self._matrix, self._matrix).block_until_ready()

    def ask(self, **_: Any) -> dict[str, Any]:
        """Bytes read and written, and operations, of the fastest pass."""
        moved, flops = 2 * self._nbytes * ROUNDS, 2 * self._side**3 * ROUNDS
        return {
            "read_gb_s": moved / _fastest(self._run_copy) / 1e9,
            "gemm_gflop_s": flops / _fastest(self._run_product) / 1e9,
            "gemm": f"bf16 {self._side}x{self._side}x{self._side}",
        }


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of PASSES."""
    seconds = []
    for _ in range(PASSES):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
