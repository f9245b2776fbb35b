"""Products with a layer's matrices, their biases added. Knows stacks of layers and the mesh, no family."""

from typing import Any

import jax

from packlight.model.network.collectives import gathered, summed
from packlight.model.network.state import Numerics
from packlight.model.network.step import Step
from packlight.model.spec.weight import Segment
from packlight.model.weights.params import Params
from packlight.model.weights.stack import stacked_matmul_many
from packlight.quant.matmul import matmul


def linear(x: jax.Array, weights: Params, name: str, index: jax.Array, numerics: Numerics) -> jax.Array:
    """x (B, T, in) times layer `index`'s matrix `name`, plus its bias when the file has one: float32 (B, T, out)."""
    return linears(x, weights, (name,), index, numerics)[0]


def linears(
    x: jax.Array, weights: Params, names: tuple[str, ...], index: jax.Array, numerics: Numerics
) -> list[jax.Array]:
    """`linear` with several matrices, which a path may do in one call."""
    flat = x.reshape(-1, x.shape[-1]).astype(numerics.dtype)
    ys = stacked_matmul_many(flat, [weights[name] for name in names], index, numerics.paths)
    ys = [finished(y, weights, name, index) for y, name in zip(ys, names, strict=True)]
    return [y.reshape(*x.shape[:-1], y.shape[-1]) for y in ys]


def single(x: jax.Array, params: Params, name: str, numerics: Numerics) -> jax.Array:
    """x (M, in) times a matrix of which the model has one, scaled and biased as the file says: float32 (M, out)."""
    matrix = params[name]
    return finished(matmul(x.astype(numerics.dtype), matrix, numerics.paths[matrix.qtype]), params, name)


def finished(y: jax.Array, weights: Params, name: str, at: Any = ()) -> jax.Array:
    """A product (..., out) with the matrix `name`, scaled and biased as the file says: float32 (..., out).

    at: the layer's index, and the expert's where a layer has a matrix for each, or each row's expert's; () where the
    model has one.
    """
    scale, bias = weights.get(f"{name}.scale"), weights.get(f"{name}.bias")
    lead = (1,) * (y.ndim - 2)
    y = y if scale is None else y * scale[at].reshape(*lead, -1, 1)
    return y if bias is None else y + bias[at].reshape(*lead, -1, y.shape[-1])


def closing(step: Step, x: jax.Array, weights: Params, name: str, index: jax.Array, inputs: Segment) -> jax.Array:
    """`linear` with the matrix that ends a branch: whole results from a device's part of its inputs."""
    split = step.numerics.split
    if split.tensor == 1:
        return linear(x, weights, name, index, step.numerics)
    branch = split.branch(inputs)
    if branch.closing == "inputs":
        y = summed(linear(x, {name: weights[name]}, name, index, step.numerics), split)
        return finished(y, weights, name, index)
    if x.shape[-1] < branch.length:
        x = gathered(x, branch.length, split)
    return gathered(linear(x, weights, name, index, step.numerics), step.cfg.embedding_length, split)
