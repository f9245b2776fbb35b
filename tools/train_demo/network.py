"""The demo model as it is trained: a llama in float32, its parameters under the names they have in GGUF.

Axis letters as in `model/__init__.py`, L is the layers. It knows arrays only; that packlight computes the same function
of the exported file is a test (`tests/project/test_train_demo.py`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the network. Every matrix width is a multiple of 256, the block of the K formats, by default."""

    layers: int = 4
    embed: int = 256
    ffn: int = 1024
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 4096
    context: int = 512
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.embed // self.heads

    def matrices(self) -> dict[str, tuple[int, int]]:
        """The matrices of a layer, (out, in)."""
        D, F, kv = self.embed, self.ffn, self.kv_heads * self.head_dim
        attention = {"attn_q": (D, D), "attn_k": (kv, D), "attn_v": (kv, D), "attn_output": (D, D)}
        return attention | {"ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F)}


def init(key: jax.Array, shape: Shape) -> Params:
    """Random parameters: normal by 0.02, what writes to the residual stream by less, as GPT-2 has it."""
    keys = iter(jax.random.split(key, 1 + len(shape.matrices())))
    L = shape.layers
    blocks = {"attn_norm": jnp.ones((L, shape.embed)), "ffn_norm": jnp.ones((L, shape.embed))}
    for name, (out, width) in shape.matrices().items():
        scale = 0.02 / (2 * L) ** 0.5 if name in ("attn_output", "ffn_down") else 0.02
        blocks[name] = scale * jax.random.normal(next(keys), (L, out, width))
    embedding = 0.02 * jax.random.normal(next(keys), (shape.vocab, shape.embed))
    return {"token_embd": embedding, "blk": blocks, "output_norm": jnp.ones(shape.embed)}


def logits(params: Params, tokens: jax.Array, shape: Shape) -> jax.Array:
    """int32 tokens (B, T) -> float32 (B, T, V)."""
    frequencies = shape.rope_base ** -jnp.arange(0, 1, 2 / shape.head_dim)
    angles = jnp.outer(jnp.arange(tokens.shape[1], dtype=jnp.float32), frequencies)  # (T, C/2)

    def layer(x: jax.Array, blk: Params) -> tuple[jax.Array, None]:  # x (B, T, D)
        x += _attention(_norm(x, blk["attn_norm"], shape), blk, angles, shape)
        h = _norm(x, blk["ffn_norm"], shape)
        h = jax.nn.silu(h @ blk["ffn_gate"].T) * (h @ blk["ffn_up"].T)  # (B, T, F)
        return x + h @ blk["ffn_down"].T, None

    x, _ = jax.lax.scan(layer, params["token_embd"][tokens], params["blk"])
    return _norm(x, params["output_norm"], shape) @ params["token_embd"].T


def loss(params: Params, windows: jax.Array, told: jax.Array, shape: Shape) -> jax.Array:
    """Mean negative log-likelihood, in nats, of the tokens after the first in int32 windows (B, T + 1).

    `told`, bool (B, T + 1): the tokens that count; what a user asks is not for the model to say.
    """
    scores = logits(params, windows[:, :-1], shape)
    right = jnp.take_along_axis(scores, windows[:, 1:, None], -1)[..., 0]
    return ((jax.nn.logsumexp(scores, -1) - right) * told[:, 1:]).sum() / told[:, 1:].sum()


def _attention(h: jax.Array, blk: Params, angles: jax.Array, shape: Shape) -> jax.Array:
    B, T, _ = h.shape
    H, K, C = shape.heads, shape.kv_heads, shape.head_dim
    # (B, heads, T, C): with all batch axes in front XLA's CPU products are three times as fast
    q = _rotate((h @ blk["attn_q"].T).reshape(B, T, H, C).swapaxes(1, 2), angles)
    k = _rotate((h @ blk["attn_k"].T).reshape(B, T, K, C).swapaxes(1, 2), angles).repeat(H // K, axis=1)
    v = (h @ blk["attn_v"].T).reshape(B, T, K, C).swapaxes(1, 2).repeat(H // K, axis=1)
    scores = q @ k.swapaxes(2, 3) * C**-0.5  # (B, H, T, T)
    scores = jnp.where(jnp.tril(jnp.ones((1, 1, T, T), bool)), scores, -jnp.inf)
    mixed = jax.nn.softmax(scores) @ v
    return mixed.swapaxes(1, 2).reshape(B, T, -1) @ blk["attn_output"].T


def _norm(x: jax.Array, weight: jax.Array, shape: Shape) -> jax.Array:
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + shape.norm_eps) * weight[None, None]


def _rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotary positions of x (B, heads, T, C) over pairs of neighbours, the layout of GGUF's llama."""
    even, odd = x[..., ::2], x[..., 1::2]
    cos, sin = jnp.cos(angles)[None, None], jnp.sin(angles)[None, None]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)
