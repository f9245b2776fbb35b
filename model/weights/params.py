"""The parameter tree, as shapes and as arrays: QTensors, stacks of them, and float32 vectors, under GGUF names."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from packlight.model.spec.config import ModelConfig
from packlight.model.spec.sharding import WHOLE, cut
from packlight.model.spec.weights import Axis, Weight, group_by_format, is_tied, layout_of, used_weights
from packlight.model.weights.load import HostWeight
from packlight.model.weights.placement import Placement, along
from packlight.model.weights.stack import Stack
from packlight.quant import layouts
from packlight.quant.qtensor import QTensor

Params = dict[str, Any]


def shaped(shape: tuple[int, ...], dtype: Any) -> Any:
    """A `jax.ShapeDtypeStruct`, typed so that it may stand where an array will."""
    return jax.ShapeDtypeStruct(shape, dtype)


def abstract(
    cfg: ModelConfig,
    formats: Mapping[str, str],
    layout: str = "ggml",
    placement: Placement | None = None,
) -> Params:
    """The parameter tree with `jax.ShapeDtypeStruct` leaves, for a file whose tensors have `formats`.

    Matrices are QTensors (per-layer ones a Stack of them, under "blk"), vectors float32 (per-layer ones `(L, n)`).
    layout: what the kernels read, where a format has it. placement: the leaves say how they lie on it; shapes are of
    all devices' parts together, padding included; a QTensor's `rows` and `width` are of one, as traced code sees it.
    Raises GGUFError as `used_weights` does.
    """
    tree: Params = {"blk": {}}
    split = WHOLE if placement is None else placement.split
    used = used_weights(cfg, formats)
    tied = is_tied(used)
    for weight in used:
        qtypes = [formats[name] for name in weight.tensors(cfg.block_count)]
        kept = [layout_of(weight, qtype, layout, tied) for qtype in qtypes]
        axis = cut(cfg, split, weight, 0).axis

        def whole(shape: tuple[int, ...], dtype: Any, layout: str, weight: Weight = weight, axis: Axis = axis) -> Any:
            at = _position(weight, axis, layout)
            full = (n * split.tensor if i == at else n for i, n in enumerate(shape))
            sharding = None if placement is None else placement.sharding(along(at))
            return jax.ShapeDtypeStruct(tuple(full), dtype, sharding=sharding)

        (tree["blk"] if weight.per_layer else tree)[weight.name] = _abstract(
            split.part(cfg, weight), qtypes, kept, whole
        )
    return tree


def _position(weight: Weight, axis: Axis, layout: str) -> int | None:
    """The axis of a weight's arrays, layers and blocks counted, along which devices share it."""
    if not axis:
        return None
    if axis == "experts":
        return int(weight.per_layer)
    ndim = len(weight.shape) + weight.per_layer + (not weight.is_vector)
    return ndim + (-1 if weight.is_vector else layouts.axis_of(axis, layout))


def _abstract(weight: Weight, qtypes: list[str], kept: list[str], whole: Callable[..., Any]) -> Any:
    """whole: (shape of a device's part, dtype, layout) -> all of it."""
    if weight.is_vector:
        return whole((len(qtypes), *weight.shape) if weight.per_layer else weight.shape, jnp.float32, "ggml")
    order, places = group_by_format(qtypes)

    def matrix(qtype: str, lead: tuple[int, ...]) -> QTensor:
        layout = kept[qtypes.index(qtype)]
        blocks = whole((*lead, *weight.blocks_shape(qtype, layout)), jnp.uint8, layout)
        return _matrix(weight, blocks, qtype, layout)

    if not weight.per_layer:
        return matrix(qtypes[0], ())
    return Stack(tuple(matrix(q, (qtypes.count(q),)) for q in order), places)


def place(weights: list[HostWeight], placement: Placement) -> Params:
    """The parameter tree on the devices. On a CPU the aligned host buffers become the arrays, uncopied.

    Empties `weights`, so that no host copy outlives its transfer.
    """
    tree: Params = {"blk": {}}
    weights.reverse()
    while weights:
        host = weights.pop()
        arrays = [
            placement.join({n: buffers[g] for n, buffers in host.parts.items()}, _position(host.weight, host.axis, at))
            for g, at in enumerate(host.layouts)
        ]
        target = tree["blk"] if host.weight.per_layer else tree
        if host.weight.is_vector:
            target[host.weight.name] = arrays[0]
        elif host.weight.per_layer:
            target[host.weight.name] = Stack(
                tuple(_matrix(host.weight, *each) for each in zip(arrays, host.qtypes, host.layouts, strict=True)),
                host.places,
            )
        else:
            target[host.weight.name] = _matrix(host.weight, arrays[0], host.qtypes[0], host.layouts[0])
    return tree


def _matrix(weight: Weight, blocks: jax.Array, qtype: str, layout: str) -> QTensor:
    """weight: one device's part. Unchecked, since blocks may be those of all devices."""
    return QTensor(blocks, qtype, layout, *((None, None) if layout == "ggml" else weight.shape[-2:]))
