"""Native CPU kernels as traceable functions: packed weights times activations. Knows no models.

Activations are rounded to int8 by blocks as large as the weights'; with plain numbers they are as they are, or in
bfloat16 where BF16 weights meet a unit for that (`round_activations`).

The C++ in `quant/native` is called through XLA's FFI on XLA's own thread pool. Weights come in ggml's layout or with
as many rows side by side as a vector of this CPU has 32-bit lanes (`quant.layouts`).
"""

import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from packlight.common.errors import UnsupportedError
from packlight.quant.formats.bits import quotient
from packlight.quant.formats.iquants import grid_words
from packlight.quant.formats.table import format_named
from packlight.quant.kernels import native_build
from packlight.quant.kernels.native_build import ISAS
from packlight.quant.layouts import FIELDS, LANES

HANDLERS = (
    "packlight_matmul",
    "packlight_attention",
    "packlight_delta",
    "packlight_mamba2",
    "packlight_norm",
    "packlight_dots",
    "packlight_route",
    "packlight_experts",
    "packlight_advance",
    "packlight_bring_experts",
    "packlight_sample",
    "packlight_logprobs",
)
QTYPES = tuple(FIELDS)  # the formats that have native kernels
ROUNDINGS = {"Q1_0": "crossed", "Q2_0": "crossed", "NVFP4": "halved"}  # the others': by their blocks; native/weights.h
PAIRS = 2  # the block of activations in bfloat16
# The formats whose quants are entries of a grid -> the one that it is named for.
GRIDS = {name: name for name in ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S")} | {"IQ1_M": "IQ1_S"}


@functools.cache
def register() -> str:
    """Builds the library if need be and registers its handlers; the library's digest.

    Must run before an executable that calls the kernels is loaded. Raises NativeBuildError.
    """
    library, digest = native_build.loaded()
    for handler in HANDLERS:
        capsule = jax.ffi.pycapsule(getattr(library, handler))
        jax.ffi.register_ffi_target(f"{handler}_{digest}", capsule, platform="cpu")
    return digest


def set_grids(qtypes: Iterable[str]) -> None:
    """Gives the library the grids of those formats that have one. Raises NativeBuildError.

    Must run before a product with such a format: `matmul_many` does so when it is traced, and whoever loads executables
    that were compiled before does it for their weights.
    """
    for name in sorted({GRIDS[qtype] for qtype in qtypes if qtype in GRIDS}):
        _set_grid(name)


@functools.cache
def _set_grid(name: str) -> None:
    native_build.set_grid(format_named(name).type_id, grid_words(name).view(np.int8))


def target(handler: str) -> str:
    """The name under which one of HANDLERS is called: it holds the library's digest."""
    return f"{handler}_{register()}"


def choices(threads: int, isa: str) -> dict[str, np.int64]:
    """Attributes that handlers share: how many threads, 0 for XLA's pool, and one of ISAS."""
    return {"threads": np.int64(threads), "isa": np.int64(ISAS.index(isa))}


def has(isa: str) -> bool:
    """Whether this CPU has one of ISAS. Raises NativeBuildError."""
    return bool(native_build.loaded()[0].packlight_has(ISAS.index(isa)))


def matmul(
    x: jax.Array,  # float32 (M, K)
    blocks: jax.Array,  # uint8 (..., ceil(out / lanes), N, lanes * block_bytes), lanes by the layout
    qtype: str,
    layout: str = "ggml",
    out: int | None = None,
    index: jax.Array | int = 0,
    *,
    threads: int = 0,
    isa: str = "best",
) -> jax.Array:  # float32 (M, out)
    """`round_activations(x) @ unpack(blocks).T` with exact integer products in a block and float32 sums over blocks;
    plain numbers are multiplied and added in float32.

    `index` picks the matrix, counted over all leading axes, when `blocks` stacks several. `out` is needed when rows are
    side by side and no multiple of that. `threads` 0 takes XLA's pool; `isa` forces one of ISAS.
    Raises UnsupportedError for a format without native kernels, ValueError for shapes.
    """
    return matmul_many(x, [blocks], [qtype], [layout], [out], [index], threads=threads, isa=isa)[0]


def matmul_many(
    x: jax.Array,  # float32 (M, K)
    blocks: Sequence[jax.Array],  # each as in `matmul`
    qtypes: Sequence[str],
    layouts: Sequence[str] | None = None,
    outs: Sequence[int | None] | None = None,
    indices: Sequence[jax.Array | int] | None = None,
    *,
    each: int = 1,
    threads: int = 0,
    isa: str = "best",
) -> list[jax.Array]:  # float32 (M, out) each
    """Several products of one `x` in one call: x is rounded once and the pool is woken once (q, k, v; gate, up).

    each: `index` picks the first of so many matrices of a stack, and each multiplies its own run of M / each rows.
    """
    layouts = layouts or ["ggml"] * len(blocks)
    outs = outs or [None] * len(blocks)
    places = jnp.stack([jnp.asarray(index, jnp.int32) for index in indices or [0] * len(blocks)])
    if x.ndim != 2 or x.dtype != jnp.float32:
        raise ValueError(f"native matmul: want x float32 (M, K), got {x.dtype} {x.shape}")
    rows, width = x.shape
    matrices = list(zip(blocks, qtypes, layouts, outs, strict=True))
    set_grids(qtypes)
    results = [jax.ShapeDtypeStruct((rows, checked_rows(*one, width)), jnp.float32) for one in matrices]
    sizes = [scratch_bytes(rows, width, kind) for kind in {rounding(qtype, isa) for qtype in qtypes}]
    scratch = jax.ShapeDtypeStruct((max(1, sum(sizes)),), jnp.uint8)
    call = jax.ffi.ffi_call(target("packlight_matmul"), [*results, scratch])
    *products, _ = call(
        x,
        places,
        *blocks,
        types=np.array([format_named(qtype).type_id for qtype in qtypes], np.int64),
        lanes=np.array([LANES[layout] for layout in layouts], np.int64),
        each=np.int64(each),
        **choices(threads, isa),
    )
    return products


def checked_rows(blocks: jax.Array, qtype: str, layout: str, out: int | None, width: int) -> int:
    """Rows of a packed matrix, after checking that it fits its format and x's width."""
    if qtype not in FIELDS:
        raise UnsupportedError(f"no native kernel for {qtype}; there are: {', '.join(QTYPES)}")
    if layout not in LANES:
        raise ValueError(f"unknown layout {layout!r}; there are: {', '.join(LANES)}")
    fmt, lanes = format_named(qtype), LANES[layout]
    tail = (width // fmt.elements, lanes * fmt.bytes)
    if blocks.dtype != jnp.uint8 or blocks.shape[-2:] != tail or blocks.ndim < 3 or width % fmt.elements:
        want = f"uint8 (rows, {tail[0]}, {tail[1]})"
        raise ValueError(f"native matmul: {qtype} {layout} for x of width {width}: want {want}, got {blocks.shape}")
    out = blocks.shape[-3] * lanes if out is None else out
    if -(-out // lanes) != blocks.shape[-3]:
        raise ValueError(f"native matmul: {qtype} {layout} blocks {blocks.shape} do not hold {out} rows")
    return out


def advance(x: jax.Array, layer: jax.Array, stream: jax.Array) -> jax.Array:
    """x itself, once a step that is about to read `layer` has said so to a stream, and the layer is in memory.

    layer: int32 (). stream: int32 (), a `native_stream.Stream`'s number. The step fails where the layer cannot be read.
    """
    result = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.ffi.ffi_call(target("packlight_advance"), result, input_output_aliases={0: 0})(x, layer, stream)


def bring_experts(chosen: jax.Array, layer: jax.Array, stream: jax.Array) -> jax.Array:
    """chosen itself, once the experts that it names are in memory.

    chosen: int32 (M, X); a number outside 0..E-1 is nobody's. layer: int32 (), among those with experts. stream: int32
    (), a `native_stream.Stream`'s number. The step fails where an expert cannot be read.
    """
    result = jax.ShapeDtypeStruct(chosen.shape, chosen.dtype)
    call = jax.ffi.ffi_call(target("packlight_bring_experts"), result, input_output_aliases={0: 0})
    return call(chosen, layer, stream)


def activation_block(qtype: str, isa: str = "best") -> int:
    """Activations of a row that are rounded together where they meet a format's weights: `round_activations`' block."""
    if qtype == "BF16" and isa in ("best", "avx512bf16") and has("avx512bf16"):
        return PAIRS
    elements = format_named(qtype).elements
    return elements if elements in (1, 256) else 32


def rounding(qtype: str, isa: str = "best") -> str | int:
    """How x is rounded for a format, once for all formats of which it is the same: native/weights.h."""
    return ROUNDINGS.get(qtype) or activation_block(qtype, isa)


def scratch_bytes(rows: int, width: int, kind: str | int) -> int:
    """Bytes that x takes when it is rounded: `Activations::bytes` in native/weights.h. kind: of `rounding`."""
    if kind == 1:
        return 0
    size = 4 * rows * -(-width // 2) if kind == PAIRS else rows * width * 11 // 8
    return -(-size // 64) * 64


def round_activations(x: jax.Array, block: int) -> jax.Array:
    """What a kernel computes with in place of x: float32 (M, K) -> float32 (M, K), int8 times a scale per `block`.

    The twin of native/quantize.h, operation for operation: d = max / 127, q = round_half_even(x * (127 / max)). A block
    of 1 is x itself, and PAIRS are bfloat16.
    """
    if block == 1:
        return x
    if block == PAIRS:
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    runs = x.reshape(x.shape[0], -1, block)
    top = jnp.max(jnp.abs(runs), axis=-1, keepdims=True)
    used = top >= np.float32(2.0**-100)
    inverse = np.float32(127) / jnp.where(used, top, np.float32(1))
    q = jnp.where(used, jnp.round(runs * inverse), np.float32(0))
    d = jnp.where(jnp.isfinite(top), quotient(top, 127), jnp.nan)
    return (q * d).reshape(x.shape)
