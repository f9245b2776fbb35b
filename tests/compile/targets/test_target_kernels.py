"""Products compiled for GPUs and TPUs that are not here: nothing as large as a matrix is made, nothing is padded.

Needs libtpu or the CUDA plugin; `memory_analysis` is not enough on a TPU, because it leaves out VMEM.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from packlight.compile import aot
from packlight.compile.targets import targets
from packlight.model.network.mixers.attention import attention
from packlight.model.network.mixers.attention.scores import PLAIN, Scores
from packlight.model.network.mixers.attention.write import write
from packlight.model.network.state import Rows
from packlight.model.spec.parts.attention import KV
from packlight.quant.formats.table import FORMATS
from packlight.quant.layouts import SUPERBLOCKS, blocks_shape
from packlight.quant.matmul import matmul
from packlight.quant.qtensor import QTensor

pytestmark = pytest.mark.targets
LAYERS, OUT, WIDTH = 4, 5632, 2048
SIZES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
MOVES = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while"}  # make nothing


@functools.cache
def device(target: str):
    return targets.devices(targets.parse(target))[0]


def compiled(target: str, qtype: str, rows: int, dtype=jnp.bfloat16, out: int = OUT, width: int = WIDTH):
    """One layer's product out of a stack's, and the packed bytes of the stack."""
    path, layout = ("mosaic_gpu", "words") if target == "cuda:h200" else ("mosaic_tpu", "columns")
    placed = jax.sharding.SingleDeviceSharding(device(target))
    fmt = FORMATS[qtype]
    shape = (LAYERS, *blocks_shape(out, width // fmt.elements, fmt.bytes, layout, qtype))

    def spec(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

    w = QTensor(spec(shape, jnp.uint8), qtype, layout, out, width)  # pyright: ignore[reportArgumentType]
    step = jax.jit(lambda x, w, i: matmul(x, w, path, (i,)))
    lowered = step.lower(spec((rows, width), dtype), w, spec((), jnp.int32))
    done = lowered.compile(compiler_options=targets.compiler_options(device(target), rows))
    return done, LAYERS * out * (width // fmt.elements) * fmt.bytes


def made(text: str) -> dict[str, int]:
    """Instruction -> bytes of what it writes, in any memory: those of an HLO module that are not inside a fusion."""
    inside = set(re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", text))
    sizes, computation = {}, ""
    for line in text.splitlines():
        if begins := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            computation = begins[1]
        match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\(", line)
        if match and computation not in inside and match[3] not in MOVES:
            arrays = re.findall(r"\b(pred|bf16|[usf]\d+)\[([\d,]*)\]", match[2])
            sizes[match[1]] = sum(SIZES[t] * math.prod(map(int, filter(None, dims.split(",")))) for t, dims in arrays)
    return sizes


@pytest.mark.parametrize("rows", [1, 8, 512])
@pytest.mark.parametrize("qtype", SUPERBLOCKS)
@pytest.mark.parametrize("target", ["tpu:v5e", "tpu:v6e"])
def test_tpu_reads_packed_bytes_and_makes_nothing_of_the_matrix(target, qtype, rows):
    done, packed = compiled(target, qtype, rows)
    memory = done.memory_analysis()
    assert memory.argument_size_in_bytes <= 1.05 * packed + rows * WIDTH * 2 + 4096  # x, the index and their tiles
    assert memory.temp_size_in_bytes == 0
    # the product itself, x laid out by super-blocks, and scalars
    allowed = {4 * rows * OUT, 2 * max(rows, 8) * WIDTH, 2 * rows * WIDTH}
    assert {size for size in made(done.as_text()).values() if size > 64} <= allowed
    cost = done.cost_analysis()["bytes accessed"]
    reads = packed / LAYERS * 1.05 + 2 * rows * WIDTH * (OUT / 512) + 4 * rows * OUT
    assert cost <= reads + 4 * 2 * rows * WIDTH + 4096  # and x copied at most twice


@pytest.mark.parametrize("rows", [1, 8, 512])
@pytest.mark.parametrize("qtype", SUPERBLOCKS)
def test_gpu_reads_packed_bytes_and_makes_at_most_a_tile(qtype, rows):
    done, packed = compiled("cuda:h200", qtype, rows)
    memory = done.memory_analysis()
    assert memory.argument_size_in_bytes <= 1.02 * packed + rows * WIDTH * 2 + 4096
    parts = WIDTH // 256  # a block of threads adds up at least a super-block
    x = rows * WIDTH * 4
    few, many = 4 * rows * OUT * parts + x, OUT // 2 * WIDTH * 2 + 4 * rows * OUT + x
    # cuBLAS or XLA's split-k may ask for a workspace: 4 MB on Hopper
    assert memory.temp_size_in_bytes <= (few if rows <= 8 else many + (4 << 20)) + 4096
    assert max(made(done.as_text()).values()) <= (few if rows <= 8 else max(OUT // 2 * WIDTH * 2, 4 * rows * OUT))


@pytest.mark.parametrize("target", ["tpu:v5e", "cuda:h200"])
def test_float32_activations_and_ragged_matrices_compile(target):
    for qtype, out, width in (("F32", 8, 2048), ("Q5_0", 1000, 896), ("Q4_K", 251 * 128, 1280)):
        for rows in (2, 40):
            done, _ = compiled(target, qtype, rows, jnp.float32, out, width)
            assert done.memory_analysis().temp_size_in_bytes < (40 << 20)


def test_the_scratch_of_a_large_matrix_on_a_gpu_is_a_tile():
    done, packed = compiled("cuda:h200", "Q4_K", 1024, out=14336, width=4096)
    whole = 14336 * 4096 * 2
    assert np.isclose(packed, LAYERS * 14336 * 4096 * 4.5 / 8)
    assert max(made(done.as_text()).values()) <= 1024 * 14336 * 4  # the product; the matrix in bfloat16 is twice that
    assert done.memory_analysis().temp_size_in_bytes < whole / 4 + (4 << 20)  # cuBLAS's workspace


def test_a_prompt_fills_the_card_and_no_store_waits(monkeypatch, tmp_path):
    """512 rows by 4096: cuBLAS multiplies with 4096 columns at once, 128 pieces of 128 x 128. Unpacking them stores 256
    numbers a thread; the barriers are those for the copy and its end.
    """
    monkeypatch.setenv("MOSAIC_GPU_DUMP_TO", str(tmp_path))
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTX", "1")
    with aot._without_jax_cache():  # out of which nothing would be written there
        done, _ = compiled("cuda:h200", "Q4_K", 512, out=4096, width=4096)
    text = done.as_text()
    assert re.findall(r"= \((f32\[[\d,]+\]).* custom_call_target=\"__cublas", text) == ["f32[512,4096]"]
    assert "__triton" not in text
    (ptx,) = [path.read_text() for path in tmp_path.glob("*.ptx")]
    assert len(re.findall(r"st\.global", ptx)) == 32  # in a loop of 8 trips
    assert len(re.findall(r"bar\.sync|barrier\.sync", ptx)) <= 4


PROMPT, SPAN, KV_HEADS, DEEP = 512, 2048, 4, 16


@functools.cache
def attended(target: str, width=128, group=4, dtype=jnp.bfloat16, kind="plain", batch=1, tokens=PROMPT):
    """A loop over layers that each put keys and values into the cache and attend, as a model's step does."""
    placed = jax.sharding.SingleDeviceSharding(device(target))

    def spec(shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

    special = {
        "plain": PLAIN,
        "window": Scores(window=100),
        "all": Scores(100, 5.0, jnp.zeros(KV_HEADS * group)),
    }[kind]
    kernel = "mosaic" if target.startswith("cuda") else "tiled"

    def step(k, v, q, new, start, end):
        rows = Rows(jnp.int32(1), start, end, start >= 0)

        def layer(i, carry):
            q, state = carry
            state = write(state, i, new + q[:, :, :KV_HEADS], new, rows)
            return attention(q, state, i, rows, SPAN, kernel, special).reshape(q.shape), state

        return jax.lax.fori_loop(0, DEEP, layer, (q, KV(k, v)))

    cache = spec((DEEP, 8, KV_HEADS, SPAN, width), dtype)
    q, new = (spec((batch, tokens, n, width), jnp.float32) for n in (KV_HEADS * group, KV_HEADS))
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(cache, cache, q, new, spec((batch,)), spec((batch,)))
    return lowered.compile(), q.size, new.size, cache.size * cache.dtype.itemsize


def scratch(queries: int, new: int) -> int:
    """Queries, what they mix, and one layer's keys and values, each in float32 and in the cache's type or order."""
    return (4 + 4 + 2) * queries + 2 * (4 + 2) * new + 4096


@pytest.mark.parametrize("target", ["cuda:h100", "cuda:h200"])
def test_gpu_attention_writes_no_scores_and_copies_no_cache(target):
    done, queries, new, cache = attended(target)
    memory = done.memory_analysis()
    assert memory.argument_size_in_bytes <= 2 * cache + 4 * (queries + new) + 4096
    assert memory.alias_size_in_bytes >= 2 * cache
    assert memory.temp_size_in_bytes <= scratch(queries, new)
    assert scratch(queries, new) < 4 * PROMPT * SPAN * KV_HEADS < cache  # scores of one head of each group
    assert "mosaic_gpu" in done.as_text()


@pytest.mark.parametrize(
    ("width", "group", "dtype", "kind"),
    [(64, 8, jnp.bfloat16, "plain"), (64, 8, jnp.bfloat16, "all"), (192, 1, jnp.float16, "window")]
    + [(256, 2, jnp.bfloat16, "all"), (128, 7, jnp.float16, "all")],
)
def test_gpu_attention_compiles_for_every_kind_of_model(width, group, dtype, kind):
    done, queries, new, _ = attended("cuda:h200", width, group, dtype, kind)
    assert done.memory_analysis().temp_size_in_bytes <= scratch(queries, new)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (4, 1), (1, 128)])
@pytest.mark.parametrize("width", [64, 80, 128])
def test_a_tpu_copies_no_cache(width, batch, tokens):
    """Its argument, its place in the loop over layers and what is updated there are one array in one layout."""
    done, _, _, cache = attended("tpu:v5e", width, batch=batch, tokens=tokens)
    memory = done.memory_analysis()
    assert memory.alias_size_in_bytes >= 2 * cache
    assert memory.temp_size_in_bytes <= cache / 100


def test_a_tpu_of_another_kind_copies_no_cache():
    done, _, _, cache = attended("tpu:v6e", 64, batch=4, tokens=1)
    assert done.memory_analysis().temp_size_in_bytes <= cache / 100
