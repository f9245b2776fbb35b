"""`Stack`: one tensor of every layer, grouped by format, and products with one layer's matrices."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from packlight.quant.kernels.native_experts import Experts, experts
from packlight.quant.matmul import matmul_each, matmul_many, unpacked
from packlight.quant.qtensor import QTensor


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stack:
    """One tensor of every layer, grouped by format."""

    groups: tuple[QTensor, ...]  # one for each format; blocks (layers of this format, ..., out, N, block_bytes)
    places: tuple[tuple[int, int], ...] = dataclasses.field(metadata={"static": True})  # layer -> (group, index in it)


def stacked_matmul(
    x: jax.Array, stack: Stack, index: jax.Array, paths: Mapping[str, str], inner: tuple = ()
) -> jax.Array:
    """x (M, in) times the matrix of layer `index`: float32 (M, out).

    paths: format -> kernel path. inner: the expert, where a layer has a matrix for each.
    """
    return stacked_matmul_many(x, [stack], index, paths, inner)[0]


def stacked_matmul_many(
    x: jax.Array, stacks: Sequence[Stack], index: jax.Array, paths: Mapping[str, str], inner: tuple = ()
) -> list[jax.Array]:
    """x (M, in) times layer `index`'s matrix of each stack: float32 (M, out) each.

    Layers whose matrices have the same formats share a branch of a switch. In it, one call multiplies all the matrices
    that go the same kernel path.
    """

    def products(ws: Sequence[QTensor], places: jax.Array, x: jax.Array) -> list[jax.Array]:
        results: dict[int, jax.Array] = {}
        for each in dict.fromkeys(paths[w.qtype] for w in ws):
            at = [i for i, w in enumerate(ws) if paths[w.qtype] == each]
            made = matmul_many(x, [ws[i] for i in at], each, [(places[i], *inner) for i in at])
            results |= dict(zip(at, made, strict=True))
        return [results[i] for i in range(len(ws))]

    return _of_layer(stacks, index, products, x)


def stacked_experts(
    x: jax.Array,  # float32 (M, D)
    chosen: jax.Array,  # int32 (M, X)
    shares: jax.Array,  # float32 (M, X)
    stacks: Sequence[Stack],  # what reads x, and what closes
    vectors: Sequence[tuple[jax.Array | None, jax.Array | None]],  # scales and biases of each, of all layers
    index: jax.Array,
    kind: str,
    scales_input: bool,
) -> jax.Array:  # float32 (M, D)
    """A mixture's feed-forward in layer `index` by `native_experts.experts`, which knows all the formats."""

    def products(ws: Sequence[QTensor], places: jax.Array, x: jax.Array) -> list[jax.Array]:
        rows = [Experts(w, places[i], *vectors[i]) for i, w in enumerate(ws)]
        return [experts(x, chosen, shares, rows[:-1], rows[-1], index, kind, scales_input=scales_input)]

    return _of_layer(stacks, index, products, x)[0]


def _of_layer(
    stacks: Sequence[Stack],
    index: jax.Array,
    products: Callable[[Sequence[QTensor], jax.Array, jax.Array], list[jax.Array]],
    x: jax.Array,
) -> list[jax.Array]:
    """products(each stack's tensor that holds layer `index`, where in them, x)."""
    groups = [tuple(stack.places[layer][0] for stack in stacks) for layer in range(len(stacks[0].places))]
    signatures = list(dict.fromkeys(groups))
    places = jnp.asarray([[p[1] for p in stack.places] for stack in stacks], jnp.int32)[:, index]

    def branch(signature: tuple[int, ...]):
        ws = [stack.groups[group] for stack, group in zip(stacks, signature, strict=True)]
        return lambda places, x: products(ws, places, x)

    if len(signatures) == 1:
        return branch(signatures[0])(places, x)
    which = jnp.asarray([signatures.index(g) for g in groups], jnp.int32)[index]
    return lax.switch(which, [branch(s) for s in signatures], places, x)


def stacked_matmul_each(x: jax.Array, stack: Stack, index: jax.Array, paths: Mapping[str, str]) -> jax.Array:
    """x (n, M, in) times the n matrices of layer `index`, each with its own: float32 (n, M, out).

    paths: format -> kernel path.
    """

    def branch(group: QTensor):
        return lambda at, x: matmul_each(x, group, paths[group.qtype], (at,))

    which, at = jnp.asarray(stack.places, jnp.int32)[index]
    return lax.switch(which, [branch(group) for group in stack.groups], at, x)


def stacked_unpacked(stack: Stack, index: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The matrix of layer `index`, or its matrices, in `dtype`: (..., out, in). Their layout must be ggml's."""

    def branch(group: QTensor):
        return lambda at: unpacked(group, (at,), dtype)

    which, at = jnp.asarray(stack.places, jnp.int32)[index]
    return lax.switch(which, [branch(group) for group in stack.groups], at)
