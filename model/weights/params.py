"""The parameter tree, as shapes and as arrays: QTensors, stacks of them, and float32 vectors, under GGUF names."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from packlight.model.spec.config import ModelConfig
from packlight.model.spec.sharding import WHOLE, cut
from packlight.model.spec.weight import Axis, Weight
from packlight.model.spec.weights import group_by_format, used_weights
from packlight.model.weights.load import GGML, HostWeight
from packlight.model.weights.placement import Placement, cut_along
from packlight.model.weights.ring import filled, first_layers, last_layers
from packlight.model.weights.stack import Stack
from packlight.quant.layouts import axis_of
from packlight.quant.qtensor import QTensor, check_blocks

Params = dict[str, Any]


def shaped(shape: tuple[int, ...], dtype: Any) -> Any:
    """A `jax.ShapeDtypeStruct`, typed so that it may stand where an array will."""
    return jax.ShapeDtypeStruct(shape, dtype)


def abstract(
    cfg: ModelConfig,
    formats: Mapping[str, str],
    layouts: Mapping[str, str] = GGML,
    placement: Placement | None = None,
    streamed: bool = False,
    kept: int | None = None,
) -> Params:
    """The parameter tree with `jax.ShapeDtypeStruct` leaves, for a file whose tensors have `formats`.

    Matrices are QTensors, vectors float32. What layers have is under "blk" and the name of its part: a Stack of
    QTensors, vectors `(L, n)`, for the L layers that have the part.
    layouts: of the tensors that are not kept in ggml's (`compile.kernels.KernelPlan`).
    placement: the leaves say how they lie on its devices. Their shapes are of all devices' parts together, padding
        included; a QTensor's `rows` and `width` are one part's, as traced code sees it.
    streamed: the leaf "stream" is there, int32 (), the number of the stream that brings layers.
    kept: layers whose matrices lie on the device, the first ones. Those of the others are under "ring", in the host's
        memory (`weights.ring`), beside "numbers", int32 (streamed layers + 1,), which counts them. None: all lie there.
    Raises GGUFError as `used_weights` does.
    """
    tree: Params = {"blk": {}}
    split = WHOLE if placement is None else placement.split
    if streamed:
        sharding = None if placement is None else placement.sharding()
        tree["stream"] = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding)
    if kept is not None:
        sharding = None if placement is None else placement.sharding()
        numbers = jax.ShapeDtypeStruct((cfg.block_count - kept + 1,), jnp.int32, sharding=sharding)
        tree |= {"ring": {}, "numbers": numbers}
    host = None if placement is None or kept is None else placement.host_sharding()
    for weight in used_weights(cfg, formats):
        names = weight.tensors
        qtypes, stays = [formats.get(name, "F32") for name in names], [layouts.get(name, "ggml") for name in names]
        join = functools.partial(_join_shapes, placement, weight, cut(split, weight, 0).axis)
        leaf = _abstract_weight(split.part(weight), qtypes, stays, join)
        if kept is None or not isinstance(leaf, Stack):
            _branch(tree, weight)[weight.name] = leaf
        else:
            first = lambda x, n: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype, sharding=x.sharding)  # noqa: E731
            rest = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.uint8, sharding=host)
            _divide(tree, weight, leaf, kept, first, rest)
    return tree


def _divide(
    tree: Params,
    weight: Weight,
    stack: Stack,
    kept: int,
    first: Callable[[Any, int], Any],
    rest: Callable[[tuple[int, ...]], Any],
) -> None:
    """Puts the first layers of a stack under "blk" and the others under "ring", their blocks made by `first` and
    `rest` as `weights.ring` says it.
    """
    if kept:
        _branch(tree, weight)[weight.name] = first_layers(stack, kept, first)
    tree["ring"].setdefault(weight.part, {})[weight.name] = last_layers(stack, kept, rest)


def streamed_layers(params: Params) -> int:
    """How many layers pass through the device."""
    return params["numbers"].shape[0] - 1 if "ring" in params else 0


def _branch(tree: Params, weight: Weight) -> Params:
    """Where in the tree a weight is."""
    return tree["blk"].setdefault(weight.part, {}) if weight.per_layer else tree


def _abstract_weight(part: Weight, qtypes: list[str], kept: list[str], join: Callable[..., Any]) -> Any:
    """One weight's leaf or leaves.

    qtypes, kept: the format and the layout of each tensor.
    join: makes the leaf of all devices from the shape of one's part, its dtype and its layout.
    """
    if part.is_vector:
        return join((len(qtypes), *part.shape) if part.per_layer else part.shape, jnp.float32, "ggml")
    order, places = group_by_format(qtypes)

    def matrix(qtype: str, lead: tuple[int, ...]) -> QTensor:
        layout = kept[qtypes.index(qtype)]
        return _matrix(part, join((*lead, *part.blocks_shape(qtype, layout)), jnp.uint8, layout), qtype, layout)

    if not part.per_layer:
        return matrix(qtypes[0], ())
    return Stack(tuple(matrix(q, (qtypes.count(q),)) for q in order), places)


def _join_shapes(
    placement: Placement | None, weight: Weight, axis: Axis, shape: tuple[int, ...], dtype: Any, layout: str
) -> Any:
    """The ShapeDtypeStruct of all devices' parts together, given the shape of one."""
    if placement is None:
        return jax.ShapeDtypeStruct(shape, dtype)
    at = _array_axis(weight, axis, layout)
    full = tuple(n * placement.split.tensor if i == at else n for i, n in enumerate(shape))
    return jax.ShapeDtypeStruct(full, dtype, sharding=placement.sharding(cut_along(at)))


def _array_axis(weight: Weight, axis: Axis, layout: str) -> int | None:
    """The axis of a weight's arrays, which have layers and blocks too, along which devices share it."""
    if not axis:
        return None
    if weight.is_vector or axis == "experts":
        return weight.per_layer + weight.position(axis)
    return weight.per_layer + len(weight.shape) + 1 + axis_of(axis, layout)


def place(
    weights: list[HostWeight], placement: Placement, stream: int | None = None, kept: int | None = None
) -> Params:
    """The parameter tree on the devices. On a CPU the aligned host buffers become the arrays, uncopied.

    stream: the number of the stream that brings layers, which becomes the leaf "stream".
    kept: as for `abstract`.
    Empties `weights`, so that no host copy outlives its transfer. Raises ValueError where a buffer does not hold the
    matrix that it should.
    """
    tree: Params = {"blk": {}}
    if stream is not None:
        tree["stream"] = placement.put(np.int32(stream))
    if kept is not None:
        layers = max(len(host.places) for host in weights)
        tree |= {"ring": {}, "numbers": placement.put(np.arange(layers - kept + 1, dtype=np.int32))}
    weights.reverse()
    while weights:
        host = weights.pop()
        if kept is not None and host.places:
            _divide_host(tree, host, placement, kept)
            continue
        target = _branch(tree, host.weight)
        arrays = [_join_parts(host, group, placement) for group in range(len(host.layouts))]
        if host.weight.is_vector:
            target[host.weight.name] = arrays[0]
            continue
        groups = tuple(_matrix(host.weight, *each) for each in zip(arrays, host.qtypes, host.layouts, strict=True))
        target[host.weight.name] = Stack(groups, host.places) if host.weight.per_layer else groups[0]
    return tree


def _divide_host(tree: Params, host: HostWeight, placement: Placement, kept: int) -> None:
    """The layers of a matrix to the single device and to its host's pinned memory."""
    (parts,) = host.parts.values()
    for blocks, qtype, layout in zip(parts, host.qtypes, host.layouts, strict=True):
        check_blocks(blocks, qtype, layout, *host.weight.shape[-2:])
    groups = tuple(_matrix(host.weight, *each) for each in zip(parts, host.qtypes, host.layouts, strict=True))
    stack = Stack(groups, host.places)
    fill = filled(stack, kept)
    first = lambda blocks, n: placement.join({0: blocks[:n]}, None)  # noqa: E731
    _divide(tree, host.weight, stack, kept, first, lambda shape: placement.put_in_host(fill(shape)))


def _join_parts(host: HostWeight, group: int, placement: Placement) -> jax.Array:
    """One array from the devices' buffers of a group, which are checked first."""
    layout = host.layouts[group]
    buffers = {device: parts[group] for device, parts in host.parts.items()}
    if not host.weight.is_vector:
        for blocks in buffers.values():
            check_blocks(blocks, host.qtypes[group], layout, *host.weight.shape[-2:])
    return placement.join(buffers, _array_axis(host.weight, host.axis, layout))


def _matrix(part: Weight, blocks: Any, qtype: str, layout: str) -> QTensor:
    """A QTensor of all devices' blocks, which says how many weights one device's part of them holds.

    Unchecked: the shapes of `abstract` follow from the declaration, and `place` has checked each part.
    """
    return QTensor(blocks, qtype, layout, *((None, None) if layout == "ggml" else part.shape[-2:]))
