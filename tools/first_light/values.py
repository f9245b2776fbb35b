"""Is the arithmetic right: products against float64, attention against its twin, each run four times for equal bits.

python -m tools.first_light.values      # writes OUT/values.json, exits with 1 when a case is wrong
"""

import concurrent.futures
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from packlight.model.network.mixers.attention import KV, Rows, Scores, attention
from packlight.quant.layouts import SUPERBLOCKS
from packlight.quant.matmul import matmul
from packlight.quant.qtensor import QTensor, unpack
from tools.first_light import common

MAIN = ("Q4_K", "Q6_K", "Q8_0")  # the formats that most files have
SPAN = 1024  # positions of the cache under test
ATTENTION_BOUND = 0.02  # relative error: q, k, v and the weights of the sum have 8 bits
Result = dict[str, Any]


def product(qtype: str, rows: int, dtype: Any, out: int, width: int) -> Result:
    """One matrix product, against float64."""
    path, layout = common.path_and_layout()
    blocks = common.weights(qtype, out, width, 0.05, seed=rows + out)
    with jax.default_device(jax.devices("cpu")[0]):
        w64 = np.asarray(unpack(blocks, qtype), np.float64)
    ours = common.packed(blocks, qtype, layout)
    stack = np.stack([np.zeros_like(ours), ours, np.full_like(ours, 1)])  # a neighbour read by mistake shows
    w = QTensor.of(jax.device_put(stack, jax.devices()[0]), qtype, layout, out, width)
    x = jnp.asarray(np.random.default_rng(rows + out).normal(size=(rows, width)), dtype)
    run = jax.jit(lambda x, w, index: matmul(x, w, path, (index,)))
    began = time.perf_counter()
    first = np.asarray(run(x, w, jnp.int32(1)))
    took = time.perf_counter() - began
    again = [np.asarray(run(x, w, jnp.int32(1))) for _ in range(3)]
    x64 = np.asarray(x.astype(jnp.float32), np.float64)
    exact = x64 @ w64.T
    size = np.abs(x64) @ np.abs(w64).T + 1e-30
    rounded = dtype == jnp.bfloat16 and (rows > 8 or not common.on_gpu())  # the weights are rounded to bfloat16 too
    bound = width * 2.0**-24 + (2.0**-9 if rounded else 0)
    worst = float((np.abs(first - exact) / size).max())
    return {
        "what": f"{qtype} {rows}x{width}->{out} {np.dtype(dtype).name}",
        "error": float(np.linalg.norm(first - exact) / np.linalg.norm(exact)),
        "worst": worst,
        "bound": bound,
        "compile_s": took,
        "same": all(np.array_equal(first, y) for y in again),
        "ok": worst <= bound,
    }


def attend(width: int, group: int, dtype: Any, scores: Scores, tokens: int, start: int) -> Result:
    """Attention of the kernel that a step would take, against the loop over tiles."""
    kv_heads, rows = 2, 2
    rng = np.random.default_rng(width)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    q = normal(rows, tokens, kv_heads * group, width)
    k, v = (normal(3, rows, kv_heads, SPAN, width).astype(dtype) for _ in "kv")
    begins = jnp.array([start, start // 2], jnp.int32)
    where = Rows(jnp.int32(0), begins, begins + tokens, jnp.ones(rows, bool))

    def run(kernel: str) -> np.ndarray:
        def layer(q, k, v):
            return attention(q, KV(k, v), jnp.int32(1), where, SPAN, kernel, scores)

        return np.asarray(jax.jit(layer)(q, k, v), np.float64)

    kernel = "whole" if tokens == 1 else "mosaic" if common.on_gpu() else "tiled"
    got, twin = run(kernel), run("tiled")
    error = float(np.linalg.norm(got - twin) / np.linalg.norm(twin))
    kind = "plain" if scores.window is None else "window" if scores.sinks is None else "window, softcap, sinks"
    return {
        "what": f"attention {kernel} {width} group {group} {np.dtype(dtype).name} {kind} {tokens}@{start}",
        "error": error,
        "worst": float(np.abs(got - twin).max()),
        "bound": ATTENTION_BOUND,
        "same": bool(np.array_equal(got, run(kernel))),
        "ok": error < ATTENTION_BOUND,
    }


Job = tuple[Callable[..., Result], tuple[Any, ...]]


def products() -> list[Job]:
    """Every format that the kernels read: few rows, which take another kernel than many, and ragged shapes."""
    cases: list[tuple[Any, ...]] = []
    for qtype in (*MAIN, *(q for q in SUPERBLOCKS if q not in MAIN)):
        for rows in (1, 8, 40) if qtype in MAIN else (3, 9):
            cases.append((qtype, rows, jnp.bfloat16, 300, 1536))  # rows that do not fill a group of 128
        if qtype in MAIN:
            cases.append((qtype, 1, jnp.bfloat16, 4096, 4096))
            cases.append((qtype, 2, jnp.float32, 256, 2048))
            cases.append((qtype, 512, jnp.bfloat16, 2048, 4096))
    return [(product, case) for case in (cases if common.on_gpu() else cases[:4])]


def attentions() -> list[Job]:
    """The widths of heads that the kernel knows, with and without what families do to scores."""
    plain, hot = Scores(), Scores(100, 5.0, jnp.zeros(4))
    cases = [
        (128, 4, jnp.bfloat16, plain, 512, 0),
        (64, 8, jnp.bfloat16, plain, 77, 300),
        (128, 7, jnp.float16, plain, 33, 64),
        (64, 2, jnp.bfloat16, hot, 130, 150),
        (192, 1, jnp.float16, Scores(window=70), 90, 100),
        (256, 2, jnp.bfloat16, hot, 64, 200),
        (128, 4, jnp.bfloat16, plain, 1, 700),
    ]
    return [(attend, case) for case in cases]


def run(job: Job) -> Result:
    """A case's result; one that fails has the error's text in it."""
    case, arguments = job
    try:
        return case(*arguments)
    except Exception as error:  # of the driver or the compiler: the other cases go on
        return {"what": str(arguments), "ok": False, "failed": f"{type(error).__name__}: {error}"[:600]}


def line_of(made: Result) -> str:
    if "failed" in made:
        return f"{made['what']} {made['failed']}   <-- FAILED"
    note = "" if made["same"] else "   <-- CHANGES FROM RUN TO RUN"
    note = note if made["ok"] else "   <-- WRONG"
    return f"{made['what']} error {made['error']:.1e} worst {made['worst']:.1e} of {made['bound']:.1e}{note}"


def main() -> None:
    first, *later = [products()[:6], attentions(), products()[6:]]
    jobs = sum(later, first)
    results, right = [], 0
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for made in pool.map(run, jobs):
            results.append(made)
            right += made["ok"] and made["same"]
            print(line_of(made), flush=True)
            common.save("values.json", results)
    print(f"{right} of {len(results)} right")
    sys.exit(right < len(results))


if __name__ == "__main__":
    main()
