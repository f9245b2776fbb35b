"""Attention by the C++ kernel of a CPU, `quant/kernels/native/attention.cc`."""

import jax
import jax.numpy as jnp
import numpy as np

from packlight.model.network.mixers.attention.scores import PLAIN, Scores
from packlight.model.network.state import Rows
from packlight.model.spec.parts.attention import KV, QuantizedKV
from packlight.quant.kernels import native_ops

BLOCK_ROWS = 64  # queries that share a pass over keys and values
PART = 256  # cached positions that are added up before they are added to others: kPart of native/attention.h


def native_attention(
    q: jax.Array,
    state: KV | QuantizedKV,
    index: jax.Array,
    rows: Rows,
    span: int,
    special: Scores = PLAIN,
    values: int = 0,
    *,
    threads: int = 0,
    isa: str = "best",
) -> jax.Array:
    """As `tiled.tiled_attention`, on the whole cache and on XLA's own threads.

    A query's bits depend on its own text alone: not on how many queries there are, on neighbours, slot, span or number
    of threads. Queries of padding give something finite. Where keys are rounded, queries are too, by blocks of 32 as
    `native_ops.round_activations` does it, and a block's products are added up exactly. threads 0 takes XLA's pool;
    isa: one of native_ops.ISAS.
    """
    return _call(q, state, index, rows, span, special, values, True, threads, isa)


def native_full_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    end: jax.Array,
    causal: bool,
    special: Scores = PLAIN,
    *,
    threads: int = 0,
    isa: str = "best",
) -> jax.Array:
    """As `full.full_attention`: keys and values are a cache of one layer with a slot for each row."""
    k, v = (x.transpose(0, 2, 1, 3)[None] for x in (k, v))  # (1, B, K, T, C)
    rows = Rows(jnp.int32(0), jnp.zeros_like(end), end, end > 0)
    return _call(q, KV(k, v), jnp.int32(0), rows, k.shape[3], special, 0, causal, threads, isa)


def _call(
    q: jax.Array,
    state: KV | QuantizedKV,
    index: jax.Array,
    rows: Rows,
    span: int,
    special: Scores,
    values: int,
    causal: bool,
    threads: int,
    isa: str,
) -> jax.Array:
    B, T, H, C = q.shape
    K = state.k.shape[2]
    group, width, window = H // K, values or C, special.window or 0
    split, scratch = T * group <= BLOCK_ROWS or T == 1, 0
    if split:  # positions are shared out among threads; the last part is not whole, nor is a window's first one
        seen = min(span, window + T + PART) if window else span
        scratch = B * K * -(-seen // PART) * _partial_floats(T * group, width)
    none = jnp.zeros((0,), jnp.float32)
    scales = (state.k_scales, state.v_scales) if isinstance(state, QuantizedKV) else 2 * (none.astype(jnp.float16),)
    results = [jax.ShapeDtypeStruct((B, T, H * width), jnp.float32), jax.ShapeDtypeStruct((scratch,), jnp.float32)]
    call = jax.ffi.ffi_call(native_ops.target("packlight_attention"), results)
    out, _ = call(
        *(q, state.k, state.v, *scales, index, rows.slot, rows.start, rows.end),
        none if special.sinks is None else special.sinks,
        none if special.alibi is None else special.alibi,
        value_width=np.int64(width),
        block_rows=np.int64(BLOCK_ROWS),
        split=np.bool_(split),
        causal=np.bool_(causal),
        window=np.int64(window),
        chunked=np.bool_(special.chunked),
        softcap=np.float32(special.softcap),
        **native_ops.choices(threads, isa),
    )
    return out


def _partial_floats(rows: int, width: int) -> int:
    """Partial::floats of native/attention.h: two numbers a row and a row of values, each padded to 16."""
    return 2 * (-(-rows // 16) * 16) + rows * (-(-width // 16) * 16)
