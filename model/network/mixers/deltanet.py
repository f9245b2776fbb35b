"""The gated delta net: a mixer whose heads remember a matrix of values by keys. Knows no executables.

A head's memory M fades, forgets what it holds under the present key in favour of the present value, and is asked with
the present query:

    M = e^g M;  M = M + k^T beta (v - k M);  o = q M

Sources: Gated DeltaNet (2412.06464) for the formulas and for prompts in chunks, llama.cpp's graph of qwen35 for the
rest.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.network.collectives import gathered
from packlight.model.network.mixers import recurrence
from packlight.model.network.mixers.convolution import convolve, follow
from packlight.model.network.norms import norm, unit
from packlight.model.network.products import closing, linears
from packlight.model.network.state import Rows
from packlight.model.network.step import Step
from packlight.model.spec.parts.deltanet import DeltaNetPart, Memory
from packlight.model.spec.state import has_native_recurrence
from packlight.model.weights.params import Params

CHUNK = 64  # tokens whose changes of the memory are made at once
EXACT = lax.Precision.HIGHEST  # no TF32 for float32 on a GPU


class Tokens(NamedTuple):
    """What each token says to every head, float32."""

    q: jax.Array  # (B, T, H, S)
    k: jax.Array  # (B, T, H, S)
    v: jax.Array  # (B, T, H, S)
    beta: jax.Array  # (B, T, H), how much of what the key stood for gives way
    fade: jax.Array  # (B, T, H), logarithm of what is left of the memory


def mix(
    step: Step,
    part: DeltaNetPart,
    weights: Params,
    index: jax.Array,  # int32 (), of the layer among those that have the part
    state: Memory,
    h: jax.Array,  # float32 (B, T, D), normed
) -> tuple[jax.Array, Memory]:  # float32 (B, T, D)
    """What the delta net adds to a layer's input, and the state with this step's tokens."""
    qkv, z, beta, alpha = project(step, part, weights, index, h)
    inputs, columns = follow(state.columns, index, qkv, step.rows)
    qkv = jax.nn.silu(convolve(inputs, weights["ssm_conv1d"][index]))
    G, S = step.numerics.split.local_groups(part.groups), part.width
    q, k, v = jnp.split(qkv, [G * S, 2 * G * S], axis=-1)
    q, k = (unit(step, x.reshape(*x.shape[:2], G, S)) for x in (q, k))
    v = v.reshape(*v.shape[:2], -1, S)
    fade = jax.nn.softplus(alpha + weights["ssm_dt.bias"][index][None, None]) * weights["ssm_a"][index][None, None]
    q, beta = q / jnp.float32(S**0.5), jax.nn.sigmoid(beta)
    if step.numerics.native and has_native_recurrence(part.width):
        o, matrices = remember_native(state.matrices, index, (q, k, v, beta, fade), step.rows, part.consecutive)
    else:
        q, k = (_of_heads(part, x) for x in (q, k))
        o, matrices = remember(state.matrices, index, Tokens(q, k, v, beta, fade), step.rows)
    y = norm(step, o, weights, "ssm_norm", index) * jax.nn.silu(z.reshape(o.shape))
    y = closing(step, y.reshape(*h.shape[:2], -1), weights, "ssm_out", index, part.of_heads(S)[0])
    return y, Memory(columns, matrices)


def project(
    step: Step, part: DeltaNetPart, weights: Params, index: jax.Array, h: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values (B, T, channels) before the convolution, gates (B, T, H * S), and beta and alpha of each
    head (B, T, H), before their functions. Of normed inputs (B, T, D).
    """
    split, S, shared = step.numerics.split, part.width, part.shared
    first = ("ssm_in",) if "ssm_in" in weights else ("attn_qkv", "attn_gate")
    second = ("ssm_ba",) if part.consecutive else ("ssm_beta", "ssm_alpha")
    made = linears(h, weights, (*first, *second), index, step.numerics)
    if not split.groups:
        H, G = part.heads, part.groups
        whole = {"attn_qkv": (2 * G + H) * S, "attn_gate": H * S, "ssm_in": 2 * (G + H) * S, "ssm_ba": 2 * H}
        made = [gathered(x, whole.get(name, H), split) for x, name in zip(made, (*first, *second), strict=True)]
    lead = (*h.shape[:2], split.local_groups(part.groups))

    def by_group(x: jax.Array, *at: int) -> list[jax.Array]:
        """The pieces of each key head's numbers, side by side with those of other key heads."""
        return [piece.reshape(*h.shape[:2], -1) for piece in jnp.split(x.reshape(*lead, -1), at, axis=-1)]

    if "ssm_in" in weights:
        q, k, v, z = by_group(made[0], S, 2 * S, (2 + shared) * S)
        made = [jnp.concatenate([q, k, v], axis=-1), z, *made[1:]]
    if part.consecutive:
        made = [*made[:2], *by_group(made[2], shared)]
    qkv, z, beta, alpha = made
    return qkv, z, beta, alpha


def _of_heads(part: DeltaNetPart, x: jax.Array) -> jax.Array:
    """What value heads read of key heads: (B, T, G, S) -> (B, T, H, S)."""
    return jnp.repeat(x, part.shared, axis=2) if part.consecutive else jnp.tile(x, (1, 1, part.shared, 1))


def remember(matrices: jax.Array, index: jax.Array, new: Tokens, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """What the heads answer, (B, T, H, S), and the matrices (L, slots, H, S, S) after it."""
    return recurrence.remember(matrices, index, new, rows, one_token if new.q.shape[1] == 1 else in_chunks)


def remember_native(
    matrices: jax.Array,
    index: jax.Array,
    new: tuple[jax.Array, ...],  # q and k (B, T, G, S), v (B, T, H, S), beta and fade (B, T, H)
    rows: Rows,
    consecutive: bool,
    *,
    threads: int = 0,
    isa: str = "best",
) -> tuple[jax.Array, jax.Array]:
    """As `remember`, of queries and keys that value heads share, by `quant/kernels/native/delta.cc`."""
    shape, target = new[2].shape, "packlight_delta"
    return recurrence.remember_native(target, matrices, index, new, shape, rows, threads, isa, consecutive=consecutive)


def one_token(memory: jax.Array, new: Tokens) -> tuple[jax.Array, jax.Array]:
    """The formulas as they stand, for T = 1: memory (B, H, S, S) -> answers (B, 1, H, S) and the memory after it."""
    q, k, v, beta, fade = (x[:, 0] for x in new)
    memory = memory * jnp.exp(fade)[..., None, None]
    change = beta[..., None] * (v - jnp.einsum("bhcv,bhc->bhv", memory, k, precision=EXACT))
    memory = memory + k[..., :, None] * change[..., None, :]
    return jnp.einsum("bhcv,bhc->bhv", memory, q, precision=EXACT)[:, None], memory


def in_chunks(memory: jax.Array, new: Tokens) -> tuple[jax.Array, jax.Array]:
    """The same for many tokens: memory (B, H, S, S) -> answers (B, T, H, S) and the memory after the last of them.

    Within a chunk, with g summed up to each token and all tokens' changes d = beta (v - k M) as rows of a matrix,

        d_i = beta_i (v_i - e^g_i k_i M_0 - sum_(j < i) e^(g_i - g_j) (k_i . k_j) d_j)

    is a triangular system: d = made - wanted M_0, where `made` and `wanted` need no memory, so that only the memory
    goes from chunk to chunk. Every exponent is of a later token less an earlier one, at most 0 where memories fade.
    """
    T = new.q.shape[1]
    size = min(CHUNK, 1 << (T - 1).bit_length())
    q, k, v, beta, fade = (_chunks(x, size) for x in new)  # (N, B, H, size, ...)
    g = jnp.cumsum(fade, axis=-1)
    earlier = jnp.tril(jnp.ones((size, size), bool), -1)[(None,) * 3]
    since = jnp.exp(jnp.where(earlier, g[..., :, None] - g[..., None, :], jnp.float32(-jnp.inf)))
    alike = _product(k, k, "ic,jc->ij")
    solved = _inverse(beta[..., None] * alike * since)
    made = _product(solved, beta[..., None] * v, "ij,jc->ic")
    wanted = _product(solved, (beta * jnp.exp(g))[..., None] * k, "ij,jc->ic")
    seen = _product(q, k, "ic,jc->ij") * (since + jnp.eye(size, dtype=jnp.float32)[(None,) * 3])
    asked = jnp.exp(g)[..., None] * q
    kept = jnp.exp(g[..., -1:] - g)[..., None] * k
    left = jnp.exp(g[..., -1])[..., None, None]

    def chunk(memory: jax.Array, parts: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        made, wanted, seen, asked, kept, left = parts
        change = made - _product(wanted, memory, "ic,cv->iv")
        o = _product(asked, memory, "ic,cv->iv") + _product(seen, change, "ij,jv->iv")
        return memory * left + _product(kept, change, "jc,jv->cv"), o

    memory, o = lax.scan(chunk, memory, (made, wanted, seen, asked, kept, left))
    o = jnp.moveaxis(o, 3, 2).swapaxes(0, 1)  # (B, N, size, H, S)
    return o.reshape(o.shape[0], -1, *o.shape[3:])[:, :T], memory


def _chunks(x: jax.Array, size: int) -> jax.Array:
    """(B, T, H, ...) -> (N, B, H, size, ...), zeros behind the last token, which change nothing."""
    B, T, *each = x.shape
    x = jnp.pad(x, ((0, 0), (0, -T % size), *((0, 0),) * len(each)))
    return jnp.moveaxis(x.reshape(B, -1, size, *each), (1, 3), (0, 2))


def _product(a: jax.Array, b: jax.Array, subscripts: str) -> jax.Array:
    """An einsum of the last two axes."""
    a_in, rest = subscripts.split(",")
    b_in, out = rest.split("->")
    return jnp.einsum(f"...{a_in},...{b_in}->...{out}", a, b, precision=EXACT)


def _inverse(below: jax.Array) -> jax.Array:
    """The inverse of I + below, whose last two axes are strictly lower triangles: of its halves, then of the whole.

    By substitution of blocks, because powers of `below` may grow beyond float32 before they vanish.
    """
    size = below.shape[-1]
    if size == 1:
        return jnp.ones_like(below)
    half = size // 2
    first, last = _inverse(jnp.stack([below[..., :half, :half], below[..., half:, half:]]))
    corner = -_product(_product(last, below[..., half:, :half], "ij,jk->ik"), first, "ij,jk->ik")
    above = jnp.zeros_like(corner)
    return jnp.concatenate([jnp.concatenate([first, above], -1), jnp.concatenate([corner, last], -1)], -2)
