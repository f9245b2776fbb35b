"""Mixtures of experts by a CPU's native kernels: each row's choice, and what the experts give. Knows no models.

A row's bits do not depend on other rows, nor on which experts they chose. `model.network.ffn.moe` has the twins.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from packlight.quant.formats.table import format_named
from packlight.quant.kernels import native_ops
from packlight.quant.layouts import LANES
from packlight.quant.qtensor import QTensor

KINDS = ("swiglu", "geglu", "gelu", "relu2", "swiglu_oai")  # native/activation.h
SCORES = ("softmax", "chosen", "sigmoid")  # native/route.cc


@dataclasses.dataclass(frozen=True)
class Experts:
    """One matrix of every expert, and what is done to its products: y * scale + bias."""

    matrices: QTensor  # (L, E, out, in), L the layers whose matrices have the format
    place: jax.Array | int  # int32 (), the layer among those
    scales: jax.Array | None = None  # float32 (layers, E), of all layers
    biases: jax.Array | None = None  # float32 (layers, E, out), of all layers


def experts(
    x: jax.Array,  # float32 (M, D)
    chosen: jax.Array,  # int32 (M, X): a number outside 0..E-1 is nobody's
    shares: jax.Array,  # float32 (M, X)
    opening: Sequence[Experts],  # (F, D) gate and up, (2 F, D) both in one, or (F, D) up alone
    closing: Experts,  # (D', F)
    layer: jax.Array | int,  # int32 (), the layer among all
    kind: str,
    *,
    scales_input: bool = False,
    threads: int = 0,
    isa: str = "best",
) -> jax.Array:  # float32 (M, D')
    """The sum over each row's chosen experts of share * expert(row), or of expert(share * row) if `scales_input`.

    Experts are added in the order of their numbers. kind: one of KINDS, the activation. threads 0 takes XLA's pool;
    isa: one of native_ops.ISAS. Raises ValueError and UnsupportedError as `native_ops.matmul_many` does.
    """
    products = [*opening, closing]
    rows, width = x.shape
    pairs = rows * chosen.shape[1]
    features = closing.matrices.shape[-1]
    widths = [width] * len(opening) + [features]
    ws = [product.matrices for product in products]
    outs = [
        native_ops.checked_rows(w.blocks, w.qtype, w.layout, w.shape[-2], width)
        for w, width in zip(ws, widths, strict=True)
    ]
    if outs[0] not in (features, 2 * features) or len(opening) > 2:
        raise ValueError(f"native experts: {outs[0]} rows of gate and up for {features} features")
    native_ops.set_grids(w.qtype for w in ws)
    none = jnp.zeros((0,), jnp.float32)
    vectors = [(w.blocks, p.scales, p.biases) for w, p in zip(ws, products, strict=True)]
    call = jax.ffi.ffi_call(
        native_ops.target("packlight_experts"),
        [
            jax.ShapeDtypeStruct((rows, outs[-1]), jnp.float32),
            jax.ShapeDtypeStruct((_scratch(pairs, width, features, ws, outs, isa),), jnp.uint8),
        ],
    )
    y, _ = call(
        x,
        chosen,
        shares,
        jnp.stack([jnp.asarray(at, jnp.int32) for at in (layer, *(product.place for product in products))]),
        *(none if array is None else array for of_one in vectors for array in of_one),
        types=np.array([format_named(w.qtype).type_id for w in ws], np.int64),
        lanes=np.array([LANES[w.layout] for w in ws], np.int64),
        outs=np.array(outs, np.int64),
        experts=np.int64(ws[0].shape[1]),
        kind=np.int64(KINDS.index(kind)),
        scales_input=np.bool_(scales_input),
        **native_ops.choices(threads, isa),
    )
    return y


def _scratch(pairs: int, width: int, features: int, ws: Sequence[QTensor], outs: Sequence[int], isa: str) -> int:
    """Bytes that experts.cc lays out: what each product reads of every pair, and what it gives."""
    *opening, closing = (native_ops.rounding(w.qtype, isa) for w in ws)
    read = sum(_read(pairs, width, kind) for kind in dict.fromkeys(opening))
    hidden = native_ops.scratch_bytes(pairs, features, closing)
    if closing == 1 and outs[0] != features:  # as they are, and not where gate was
        hidden = 4 * pairs * features
    return max(1, sum(-(-size // 64) * 64 for size in (hidden, *(4 * pairs * out for out in outs))) + read)


def _read(pairs: int, width: int, kind: str | int) -> int:
    size = 4 * pairs * width if kind == 1 else native_ops.scratch_bytes(pairs, width, kind)
    return -(-size // 64) * 64


def route(
    logits: jax.Array,  # float32 (M, E)
    used: int,
    bias: jax.Array | None,  # float32 (E,), added to the scores for the choice alone
    *,
    scores: str,
    normed: bool,
    scale: float,
    groups: int,
    groups_used: int,
    least_sum: float,
    threads: int = 0,
    isa: str = "best",
) -> tuple[jax.Array, jax.Array]:
    """Router logits -> chosen experts int32 (M, X) and their weights float32 (M, X), the best first.

    `model.spec.parts.moe.Routing` says what scores (one of SCORES), normed, scale and groups are. least_sum: what the
    chosen scores are divided by at least, where they are normed.
    """
    shape = (logits.shape[0], used)
    call = jax.ffi.ffi_call(
        native_ops.target("packlight_route"),
        [jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.float32)],
    )
    chosen, weights = call(
        logits,
        jnp.zeros((0,), jnp.float32) if bias is None else bias,
        scores=np.int64(SCORES.index(scores)),
        normed=np.bool_(normed),
        scale=np.float32(scale),
        groups=np.int64(groups),
        groups_used=np.int64(groups_used),
        least_sum=np.float32(least_sum),
        **native_ops.choices(threads, isa),
    )
    return chosen, weights
