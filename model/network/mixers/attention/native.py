"""Attention by the C++ kernel of a CPU, `quant/kernels/native/attention.cc`."""

import jax
import jax.numpy as jnp
import numpy as np

from packlight.model.network.state import Rows
from packlight.model.spec.parts.attention import KV
from packlight.quant.kernels import native_ops

BLOCK_ROWS = 64  # queries that share a pass over keys and values
PART = 256  # cached positions that one thread takes at a time when all queries of a head fit a block
MOST_PARTS = 32  # of a head: a longer span has longer parts, so that adding them up stays small


def native_attention(
    q: jax.Array,
    state: KV,
    index: jax.Array,
    rows: Rows,
    span: int,
    values: int = 0,
    *,
    threads: int = 0,
    isa: str = "best",
) -> jax.Array:
    """As `tiled.tiled_attention` with plain scores, on the whole cache and on XLA's own threads.

    A few queries (decode) are cut along the cached positions, many (prefill) into blocks of queries: by shapes and the
    row's own length alone, so that a row's bits depend on no neighbour, slot or number of threads. Queries of padding
    give something finite. threads 0 takes XLA's pool; isa: one of native_ops.ISAS.
    """
    return _call(q, state, index, rows, span, values, True, threads, isa)


def native_full_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, end: jax.Array, causal: bool, *, threads: int = 0, isa: str = "best"
) -> jax.Array:
    """As `full.full_attention` with plain scores: keys and values are a cache of one layer with a slot for each row."""
    k, v = (x.transpose(0, 2, 1, 3)[None] for x in (k, v))  # (1, B, K, T, C)
    rows = Rows(jnp.int32(0), jnp.zeros_like(end), end, end > 0)
    return _call(q, KV(k, v), jnp.int32(0), rows, k.shape[3], 0, causal, threads, isa)


def _call(
    q: jax.Array, state: KV, index: jax.Array, rows: Rows, span: int, values: int, causal: bool, threads: int, isa: str
) -> jax.Array:
    B, T, H, C = q.shape
    K = state.k.shape[2]
    group, part, scratch, width = H // K, 0, 0, values or C
    if T * group <= BLOCK_ROWS or T == 1:
        part = PART * -(-span // (PART * MOST_PARTS))
        scratch = B * K * -(-span // part) * _partial_floats(T * group, width)
    results = [jax.ShapeDtypeStruct((B, T, H * width), jnp.float32), jax.ShapeDtypeStruct((scratch,), jnp.float32)]
    call = jax.ffi.ffi_call(native_ops.target("packlight_attention"), results)
    out, _ = call(
        *(q, state.k, state.v, index, rows.slot, rows.start, rows.end),
        value_width=np.int64(width),
        block_rows=np.int64(BLOCK_ROWS),
        part=np.int64(part),
        causal=np.bool_(causal),
        threads=np.int64(threads),
        isa=np.int64(native_ops.ISAS.index(isa)),
    )
    return out


def _partial_floats(rows: int, width: int) -> int:
    """Partial::floats of native/attention.h: two numbers a row and a row of values, each padded to 16."""
    return 2 * (-(-rows // 16) * 16) + rows * (-(-width // 16) * 16)
