"""Native CPU kernels as traceable functions: packed weights times activations rounded to int8. Knows no models.

The C++ in `quant/native` is called through XLA's FFI on XLA's own thread pool. Weights come in ggml's layout or in
"rows8": the blocks of 8 consecutive rows cut into fields and interleaved, so that one vector load brings the same
4 bytes (or the same scale) of 8 rows. The bytes are the same; rows beyond the last are zero blocks.
"""

import ctypes
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from quant import native_build
from quant.errors import UnsupportedError
from quant.formats import format_named

HANDLERS = ("packlight_matmul",)
LAYOUTS = ("ggml", "rows8")
OCTET = 8
# (offset, length, unit) of each field of a block: kFormats in native/weights.h, where it is explained.
FIELDS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "Q4_0": ((0, 2, 2), (2, 16, 4)),
    "Q4_1": ((0, 2, 2), (2, 2, 2), (4, 16, 4)),
    "Q5_0": ((0, 2, 2), (2, 20, 4)),
    "Q5_1": ((0, 2, 2), (2, 2, 2), (4, 20, 4)),
    "Q8_0": ((0, 2, 2), (2, 32, 4)),
    "Q2_K": ((0, 16, 2), (16, 64, 4), (80, 2, 2), (82, 2, 2)),
    "Q3_K": ((0, 108, 4), (108, 2, 2)),
    "Q4_K": ((0, 2, 2), (2, 2, 2), (4, 140, 4)),
    "Q5_K": ((0, 2, 2), (2, 2, 2), (4, 172, 4)),
    "Q6_K": ((0, 192, 4), (192, 16, 2), (208, 2, 2)),
    "IQ4_NL": ((0, 2, 2), (2, 16, 4)),
    "IQ4_XS": ((0, 2, 2), (2, 2, 2), (4, 132, 4)),
    "MXFP4": ((0, 1, 1), (1, 16, 4)),
}
QTYPES = tuple(FIELDS)  # the formats that have native kernels


@functools.cache
def register() -> str:
    """Builds the library if need be and registers its handlers; the library's digest.

    Must run before an executable that calls the kernels is loaded. Raises NativeBuildError.
    """
    path, digest = native_build.library()
    library = ctypes.cdll.LoadLibrary(str(path))
    for handler in HANDLERS:
        capsule = jax.ffi.pycapsule(getattr(library, handler))
        jax.ffi.register_ffi_target(f"{handler}_{digest}", capsule, platform="cpu")
    return digest


def target(handler: str) -> str:
    """The name under which one of HANDLERS is called: it holds the library's digest."""
    return f"{handler}_{register()}"


def matmul(
    x: jax.Array,  # float32 (M, K)
    blocks: jax.Array,  # uint8: ggml (..., out, N, block_bytes), rows8 (..., ceil(out / 8), N, 8 * block_bytes)
    qtype: str,
    layout: str = "ggml",
    out: int | None = None,
    index: jax.Array | int = 0,
    *,
    threads: int = 0,
    portable: bool = False,
) -> jax.Array:  # float32 (M, out)
    """`round_activations(x) @ unpack(blocks).T` with exact integer products in a block and float32 sums over blocks.

    `index` picks the matrix, counted over all leading axes, when `blocks` stacks several. `out` is needed in layout
    "rows8" when the rows are no multiple of 8. `threads` 0 takes XLA's pool; `portable` runs the plain C++ kernel on
    any CPU. Raises UnsupportedError for a format without native kernels, ValueError for shapes.
    """
    return matmul_many(x, [blocks], [qtype], [layout], [out], [index], threads=threads, portable=portable)[0]


def matmul_many(
    x: jax.Array,  # float32 (M, K)
    blocks: Sequence[jax.Array],  # each as in `matmul`
    qtypes: Sequence[str],
    layouts: Sequence[str] | None = None,
    outs: Sequence[int | None] | None = None,
    indices: Sequence[jax.Array | int] | None = None,
    *,
    threads: int = 0,
    portable: bool = False,
) -> list[jax.Array]:  # float32 (M, out) each
    """Several products of one `x` in one call: x is rounded once and the pool is woken once (q, k, v; gate, up)."""
    layouts = layouts or ["ggml"] * len(blocks)
    outs = outs or [None] * len(blocks)
    places = jnp.stack([jnp.asarray(index, jnp.int32) for index in indices or [0] * len(blocks)])
    if x.ndim != 2 or x.dtype != jnp.float32:
        raise ValueError(f"native matmul: want x float32 (M, K), got {x.dtype} {x.shape}")
    rows, width = x.shape
    each = list(zip(blocks, qtypes, layouts, outs, strict=True))
    results = [jax.ShapeDtypeStruct((rows, _out(*one, width)), jnp.float32) for one in each]
    kinds = len({format_named(qtype).elements for qtype in qtypes})  # x once per size of block
    scratch = jax.ShapeDtypeStruct((kinds * (-(-rows * width * 5 // 4) + 64),), jnp.uint8)
    call = jax.ffi.ffi_call(target("packlight_matmul"), [*results, scratch])
    *products, _ = call(
        x,
        places,
        *blocks,
        types=np.array([format_named(qtype).type_id for qtype in qtypes], np.int64),
        rows8=np.array([layout == "rows8" for layout in layouts], np.int64),
        threads=np.int64(threads),
        portable=np.bool_(portable),
    )
    return products


def _out(blocks: jax.Array, qtype: str, layout: str, out: int | None, width: int) -> int:
    """Rows of a packed matrix, after checking that it fits its format and x's width."""
    if qtype not in FIELDS:
        raise UnsupportedError(f"no native kernel for {qtype}; there are: {', '.join(QTYPES)}")
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; there are: {', '.join(LAYOUTS)}")
    fmt, lanes = format_named(qtype), OCTET if layout == "rows8" else 1
    tail = (width // fmt.elements, lanes * fmt.bytes)
    if blocks.dtype != jnp.uint8 or blocks.shape[-2:] != tail or blocks.ndim < 3 or width % fmt.elements:
        want = f"uint8 (rows, {tail[0]}, {tail[1]})"
        raise ValueError(f"native matmul: {qtype} {layout} for x of width {width}: want {want}, got {blocks.shape}")
    out = blocks.shape[-3] * lanes if out is None else out
    if -(-out // lanes) != blocks.shape[-3]:
        raise ValueError(f"native matmul: {qtype} {layout} blocks {blocks.shape} do not hold {out} rows")
    return out


def round_activations(x: jax.Array, block: int) -> jax.Array:
    """What a kernel computes with in place of x: float32 (M, K) -> float32 (M, K), int8 times a scale per `block`.

    The twin of native/quantize.h, operation for operation: d = max / 127, q = round_half_even(x * (127 / max)).
    """
    runs = x.reshape(x.shape[0], -1, block)
    top = jnp.max(jnp.abs(runs), axis=-1, keepdims=True)
    used = top >= np.float32(2.0**-100)
    inverse = np.float32(127) / jnp.where(used, top, np.float32(1))
    q = jnp.where(used, jnp.round(runs * inverse), np.float32(0))
    # top / 127 by a division XLA does not turn into a product with 1 / 127
    d = jnp.where(jnp.isfinite(top), jax.lax.div(top, jax.lax.optimization_barrier(jnp.full_like(top, 127))), jnp.nan)
    return (q * d).reshape(x.shape)


def pack_rows8(blocks: np.ndarray, qtype: str) -> np.ndarray:
    """ggml's layout to "rows8": uint8 (out, N, bytes) -> uint8 (ceil(out / 8), N, 8 * bytes), zero rows at the end."""
    out, n, size = blocks.shape
    octets = -(-out // OCTET)
    padded = np.zeros((octets * OCTET, n, size), np.uint8)
    padded[:out] = blocks
    by_octet = padded.reshape(octets, OCTET, n, size)
    packed = np.empty((octets, n, OCTET * size), np.uint8)
    for offset, length, unit in FIELDS[qtype]:
        field = by_octet[..., offset : offset + length].reshape(octets, OCTET, n, length // unit, unit)
        packed[..., OCTET * offset : OCTET * (offset + length)] = field.transpose(0, 2, 3, 1, 4).reshape(octets, n, -1)
    return packed


def unpack_rows8(packed: np.ndarray, qtype: str, out: int) -> np.ndarray:
    """The inverse: uint8 (ceil(out / 8), N, 8 * bytes) -> uint8 (out, N, bytes)."""
    octets, n, size = packed.shape
    blocks = np.empty((octets, OCTET, n, size // OCTET), np.uint8)
    for offset, length, unit in FIELDS[qtype]:
        field = packed[..., OCTET * offset : OCTET * (offset + length)].reshape(octets, n, -1, OCTET, unit)
        blocks[..., offset : offset + length] = field.transpose(0, 3, 1, 2, 4).reshape(octets, OCTET, n, length)
    return blocks.reshape(octets * OCTET, n, -1)[:out]


def gather_rows8(packed: jax.Array, qtype: str, ids: jax.Array) -> jax.Array:
    """Rows of a "rows8" matrix in ggml's layout: int32 (...) -> uint8 (..., N, bytes); ids out of range are clipped."""
    octets = jnp.take(packed, ids // OCTET, axis=0, mode="clip")  # (..., N, 8 * bytes)
    lane = (ids % OCTET)[..., None, None, None, None]
    fields = []
    for offset, length, unit in FIELDS[qtype]:
        field = octets[..., OCTET * offset : OCTET * (offset + length)]
        field = field.reshape(*octets.shape[:-1], length // unit, OCTET, unit)
        taken = jnp.take_along_axis(field, lane, axis=-2)  # (..., N, length / unit, 1, unit)
        fields.append(taken.reshape(*octets.shape[:-1], length))
    return jnp.concatenate(fields, axis=-1)
