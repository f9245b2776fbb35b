"""The parameter tree, as shapes and as arrays: QTensors, stacks of them, and float32 vectors, under GGUF names."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.declaration import Weight, group_by_format, is_tied, layout_of, used_weights
from model.load import HostWeight
from model.stack import Stack
from quant.qtensor import QTensor

Params = dict[str, Any]
Device = Any  # jax.Device, which type checkers see as a variable


def shaped(shape: tuple[int, ...], dtype: Any) -> Any:
    """A `jax.ShapeDtypeStruct`, typed so that it may stand where an array will."""
    return jax.ShapeDtypeStruct(shape, dtype)


def abstract(cfg: ModelConfig, formats: Mapping[str, str], layout: str = "ggml") -> Params:
    """The parameter tree with `jax.ShapeDtypeStruct` leaves, for a file whose tensors have `formats`.

    Matrices are QTensors (per-layer ones a Stack of them, under "blk"), vectors float32 (per-layer ones `(L, n)`).
    layout: what the kernels read, where a format has it.
    Raises GGUFError as `used_weights` does.
    """
    tree: Params = {"blk": {}}
    used = used_weights(cfg, formats)
    tied = is_tied(used)
    for weight in used:
        qtypes = [formats[name] for name in weight.tensors(cfg.block_count)]
        kept = [layout_of(weight, qtype, layout, tied) for qtype in qtypes]
        (tree["blk"] if weight.per_layer else tree)[weight.name] = _abstract(weight, qtypes, kept)
    return tree


def _abstract(weight: Weight, qtypes: list[str], kept: list[str]) -> Any:
    if weight.is_vector:
        shape = (len(qtypes), *weight.shape) if weight.per_layer else weight.shape
        return shaped(shape, jnp.float32)
    order, places = group_by_format(qtypes)

    def matrix(qtype: str, lead: tuple[int, ...]) -> QTensor:
        layout = kept[qtypes.index(qtype)]
        blocks = shaped((*lead, *weight.blocks_shape(qtype, layout)), jnp.uint8)
        return QTensor(blocks, qtype, layout, None if layout == "ggml" else weight.shape[-2])

    if not weight.per_layer:
        return matrix(qtypes[0], ())
    return Stack(tuple(matrix(q, (qtypes.count(q),)) for q in order), places)


def place(weights: list[HostWeight], device: Device) -> Params:
    """The parameter tree on `device`. On a CPU the aligned host buffers become the arrays, uncopied.

    Empties `weights`, so that no host copy outlives its transfer.
    """
    tree: Params = {"blk": {}}
    weights.reverse()
    while weights:
        host = weights.pop()
        arrays = [jax.device_put(buffer, device) for buffer in host.buffers]
        target = tree["blk"] if host.weight.per_layer else tree
        if host.weight.is_vector:
            target[host.weight.name] = arrays[0]
        elif host.weight.per_layer:
            target[host.weight.name] = Stack(
                tuple(_matrix(host, *each) for each in zip(arrays, host.qtypes, host.layouts, strict=True)), host.places
            )
        else:
            target[host.weight.name] = _matrix(host, arrays[0], host.qtypes[0], host.layouts[0])
    return tree


def _matrix(host: HostWeight, blocks: jax.Array, qtype: str, layout: str) -> QTensor:
    return QTensor.of(blocks, qtype, layout, host.weight.shape[-2])
