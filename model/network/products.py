"""Products with a layer's matrices, their biases added. Knows stacks of layers and the mesh, no family."""

import jax

from packlight.model.network.collectives import gathered, summed
from packlight.model.network.state import Numerics
from packlight.model.spec.config import ModelConfig
from packlight.model.weights.params import Params
from packlight.model.weights.stack import stacked_matmul_many


def linear(x: jax.Array, blk: Params, name: str, index: jax.Array, numerics: Numerics) -> jax.Array:
    """x (B, T, in) times layer `index`'s matrix `name`, plus its bias when the file has one: float32 (B, T, out)."""
    return linears(x, blk, (name,), index, numerics)[0]


def linears(x: jax.Array, blk: Params, names: tuple[str, ...], index: jax.Array, numerics: Numerics) -> list[jax.Array]:
    """`linear` with several matrices, which a path may do in one call."""
    flat = x.reshape(-1, x.shape[-1]).astype(numerics.dtype)
    ys = stacked_matmul_many(flat, [blk[name] for name in names], index, numerics.paths)
    biases = [blk.get(f"{name}.bias") for name in names]
    ys = [y if bias is None else y + bias[index][None, :] for y, bias in zip(ys, biases, strict=True)]
    return [y.reshape(*x.shape[:-1], y.shape[-1]) for y in ys]


def closing(cfg: ModelConfig, x: jax.Array, blk: Params, name: str, index: jax.Array, numerics: Numerics) -> jax.Array:
    """`linear` with the matrix that ends a branch, `attn_output` or `ffn_down`: whole results from a device's part."""
    split = numerics.split
    if split.tensor == 1:
        return linear(x, blk, name, index, numerics)
    if (split.attn_output if name == "attn_output" else split.ffn_down) == "inputs":
        weights, bias = blk[name], blk.get(f"{name}.bias")
        y = summed(linear(x, {name: weights}, name, index, numerics), split)
        return y if bias is None else y + bias[index][None, None, :]
    if name == "ffn_down":
        x = gathered(x, cfg.feed_forward_length, split)
    elif split.heads:
        x = gathered(x, x.shape[-1] * split.tensor, split)
    return gathered(linear(x, blk, name, index, numerics), cfg.embedding_length, split)
