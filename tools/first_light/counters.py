"""One launch of each product, for ncu to count what it does.

ncu ... python -m tools.first_light.counters
"""

import jax
import jax.numpy as jnp
import numpy as np

from packlight.quant.matmul import matmul
from packlight.quant.qtensor import QTensor
from tools.first_light import common

CASES = (
    ("Q4_K", 1, 14336, 4096),
    ("Q4_K", 8, 14336, 4096),
    ("Q4_K", 512, 14336, 4096),
    ("Q6_K", 1, 14336, 4096),
    ("Q8_0", 1, 14336, 4096),
    ("Q4_K", 1, 4096, 4096),
    ("IQ4_XS", 1, 14336, 4096),
)


def main() -> None:
    path, layout = common.path_and_layout()
    run = jax.jit(lambda x, w: matmul(x, w, path))
    for qtype, rows, out, width in CASES if common.on_gpu() else CASES[:1]:
        blocks = common.packed(common.weights(qtype, out, width, 0.02, seed=0), qtype, layout)
        w = QTensor.of(jnp.asarray(blocks), qtype, layout, out, width)
        x = jnp.asarray(np.random.default_rng(1).normal(size=(rows, width)), jnp.bfloat16)
        print(qtype, rows, out, width, float(run(x, w)[0, 0]), flush=True)


if __name__ == "__main__":
    main()
