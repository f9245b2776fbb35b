"""The three traced steps, prefill, head and decode, and the abstract arguments each is lowered from.

Weights are arguments, the cache is donated, and whatever differs between requests is an array: nothing a user
changes while serving leads to another executable.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from packlight.compile.config import CompileConfig
from packlight.compile.kernels import attention
from packlight.compile.plan import Plan, StepKey
from packlight.model.network.collectives import anywhere, data_number, from_owner, rows_of_all
from packlight.model.network.forward import embed, head, layers
from packlight.model.network.state import Cache, Numerics, Rows
from packlight.model.sampling.adjust import Adjustment, nothing, table_size
from packlight.model.sampling.chain import Picked, SlotSampling, finite, nothing_picked, pick, slot_sampling
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.sharding import DATA, TENSOR, WHOLE, Split
from packlight.model.weights.params import Params, shaped
from packlight.model.weights.placement import P, Placement

CACHE_ARGUMENT = 1  # position of the donated cache in prefill and decode


def abstract_cache(cfg: ModelConfig, plan: Plan, config: CompileConfig, split: Split = WHOLE) -> Cache:
    """The cache's shapes: one for all executables of a plan."""
    shape = (cfg.block_count, plan.slots, split.cache_heads(cfg), plan.capacity, cfg.key_length)
    buffer = shaped(shape, jnp.dtype(config.kv_dtype))
    return Cache(buffer, buffer, shaped((plan.slots,), jnp.int32))


def cache_specs(split: Split) -> Cache:
    """How the cache lies on a mesh: slots along "data", kv heads along "tensor" unless every device computes all."""
    buffer: Any = P(None, DATA, TENSOR if split.heads else None)
    return Cache(buffer, buffer, P(DATA))  # pyright: ignore[reportArgumentType]  # specs in the place of arrays


def make_step(
    key: StepKey, cfg: ModelConfig, config: CompileConfig, context: int, split: Split = WHOLE, wgmma: bool = False
) -> Callable[..., Any]:
    """The traceable function of `key`, as one device of `split` runs it; see `prefill`, `head_step` and `decode` for
    arguments and results.

    context: tokens that a slot may hold, which chooses between phi3's two sets of frequencies. wgmma: see
    `compile.kernels.attention`.
    """
    kernel = attention(config, cfg, key.rows if key.phase == "prefill" else 1, wgmma)
    numerics = Numerics(config.kernel_path, jnp.dtype(config.activation_dtype), key.length, context, split, kernel)
    match key.phase:
        case "prefill":
            step = prefill
        case "head":
            step = head_step
        case "decode":
            step = functools.partial(decode, key.tokens)
        case _:
            raise ValueError(f"unknown phase in {key}")

    def traced(*args):
        return step(split.local(cfg), numerics, *args)

    traced.__name__ = key.phase
    return traced


def on_mesh(step: Callable[..., Any], key: StepKey, placement: Placement, arguments: tuple[Any, ...]) -> Callable:
    """`step` run by every device of a mesh on its parts of `arguments` (`abstract_arguments`, placed)."""
    specs = tuple(jax.tree.map(lambda x: x.sharding.spec, argument) for argument in arguments)
    cache = cache_specs(placement.split)
    results = {"prefill": (cache, P(), P()), "head": P(), "decode": (cache, P())}[key.phase]
    # Every device computes what is replicated from the same numbers; the check knows no foreign calls.
    mapped = jax.shard_map(step, mesh=placement.mesh, in_specs=specs, out_specs=results, check_vma=False)
    mapped.__name__ = key.phase
    return mapped


def placed_arguments(
    key: StepKey,
    cfg: ModelConfig,
    plan: Plan,
    config: CompileConfig,
    params: Params,
    placement: Placement,
) -> tuple[Any, ...]:
    """`abstract_arguments` that say how they lie on the devices; the parameters, arrays or shapes, do so already."""

    def put(tree: Any, specs: Any) -> Any:
        def one(spec, part):
            sharding = placement.sharding(spec)
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), part)

        return jax.tree.map(one, specs, tree, is_leaf=lambda x: isinstance(x, P))

    _, *rest = abstract_arguments(key, cfg, plan, config, params, placement.split)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    specs: list[Any] = [P()] * len(rest)
    if key.phase != "head":
        specs[0] = cache_specs(placement.split)
    if key.phase == "decode":
        specs[1:-1] = [P(DATA)] * (len(rest) - 2)
    return params, *(put(*each) for each in zip(rest, specs, strict=True))


def abstract_arguments(
    key: StepKey, cfg: ModelConfig, plan: Plan, config: CompileConfig, params: Params, split: Split = WHOLE
) -> tuple[Any, ...]:
    """The arguments of `make_step(key)` as shapes, in order, of all devices together."""
    cache = abstract_cache(cfg, plan, config, split)
    rows = key.rows

    def ints(*shape):
        return shaped(shape, jnp.int32)

    def floats(*shape):
        return shaped(shape, jnp.float32)

    def flags(*shape):
        return shaped(shape, jnp.bool_)

    asked = slot_sampling([None] * rows), nothing(rows, cfg.vocab_size, table_size(cfg.vocab_size, plan.context))
    sampling, adjustment = jax.tree.map(lambda x: shaped(x.shape, x.dtype), asked)
    match key.phase:
        case "prefill":
            return params, cache, ints(rows), ints(), ints(), ints()
        case "head":
            hidden = floats(rows, cfg.embedding_length)
            following = adjustment, sampling, ints(rows), flags(cfg.vocab_size)
            return params, hidden, *(following if samples(key) else ())
        case _:
            return params, cache, ints(rows), ints(rows), flags(rows), adjustment, sampling, flags(cfg.vocab_size)


def prefill(
    cfg: ModelConfig,
    numerics: Numerics,
    params: Params,
    cache: Cache,
    tokens: jax.Array,  # int32 (T,), padded
    slot: jax.Array,  # int32 ()
    start: jax.Array,  # int32 (), position of tokens[0]
    count: jax.Array,  # int32 (), tokens that are real
) -> tuple[Cache, jax.Array, jax.Array]:
    """Runs a chunk of one slot's prompt: the cache, hidden states float32 (T, D), and the last real one (1, D).

    Padding writes keys and values behind the real ones, where no query looks before they are overwritten.
    """
    split, mine = numerics.split, jnp.ones((), jnp.bool_)
    if split.data > 1:  # the other groups run along and leave their slots as they are
        group, slot = jnp.divmod(slot, jnp.int32(cache.length.shape[0]))
        mine = group == data_number(split)
    rows = Rows(slot, start[None], (start + count)[None], mine[None])
    hidden, cache = layers(cfg, params, embed(cfg, params, tokens[None], split), cache, rows, numerics)
    hidden = from_owner(hidden[0], mine, split)
    last = jax.lax.dynamic_slice_in_dim(hidden, count - 1, 1)
    length = cache.length.at[slot].set(jnp.where(mine, start + count, cache.length[slot]))
    return dataclasses.replace(cache, length=length), hidden, last


def samples(key: StepKey) -> bool:
    """Whether a head step picks what follows: one row may begin a text, more are asked for their logits."""
    return key.rows == 1


def head_step(
    cfg: ModelConfig,
    numerics: Numerics,
    params: Params,
    hidden: jax.Array,  # float32 (R, D)
    *following: Any,  # of one row, what `pick` takes after the logits
) -> tuple[jax.Array, jax.Array | Picked]:
    """Logits float32 (R, V), and which rows are finite, bool (R,); for one row what follows it."""
    logits = head(cfg, params, hidden, numerics)
    return logits, pick(logits, *following) if following else finite(logits)


def decode(
    at_most: int,
    cfg: ModelConfig,
    numerics: Numerics,
    params: Params,
    cache: Cache,
    tokens: jax.Array,  # int32 (B,), the last token of each slot
    wanted: jax.Array,  # int32 (B,), tokens to give each slot, 0 to at_most
    past_end: jax.Array,  # bool (B,), whether the slot goes on after an end token
    adjustment: Adjustment,  # of B slots, for all the tokens
    sampling: SlotSampling,  # each (B,)
    is_end: jax.Array,  # bool (V,), tokens that end a generation
) -> tuple[Cache, Picked]:
    """Tokens for slots 0..B-1, of each data group where there are several: the cache, and what all got, (B, at_most).

    A slot runs until it has what is wanted, or an end token, or logits that are not finite; what is picked for it
    after that means nothing. One that does not run keeps its cache and its length; it counts as empty, so that what it
    held does not lengthen the attention loop.
    """
    batch, split = tokens.shape[0], numerics.split

    def one(cache: Cache, tokens: jax.Array, running: jax.Array, sampling: SlotSampling) -> tuple[Cache, Picked]:
        start = jnp.where(running, cache.length[:batch], 0)
        rows = Rows(jnp.int32(0), start, start + 1, running)
        x = embed(cfg, params, tokens[:, None], split)
        hidden, cache = layers(cfg, params, x, cache, rows, numerics)
        picked = pick(head(cfg, params, hidden[:, 0], numerics), adjustment, sampling, start + 1, is_end)
        length = cache.length.at[:batch].add(running.astype(jnp.int32))
        return dataclasses.replace(cache, length=length), picked

    def following(state):
        done, _, cache, tokens, running, mu, all_picked = state
        cache, picked = one(cache, tokens, running, sampling._replace(mirostat_mu=mu))
        all_picked = jax.tree.map(lambda every, new: every.at[:, done].set(new), all_picked, picked)
        done += 1
        running &= (done < wanted) & picked.finite & (past_end | ~picked.is_end)
        return done, anywhere(jnp.any(running), split), cache, picked.ids, running, picked.mirostat_mu, all_picked

    running = wanted > 0
    if at_most == 1:
        cache, picked = one(cache, tokens, running, sampling)
        picked = jax.tree.map(lambda x: x[:, None], picked)
    else:
        room = nothing_picked(batch, at_most, cfg.vocab_size)
        state = jnp.int32(0), anywhere(jnp.any(running), split), cache, tokens, running, sampling.mirostat_mu, room
        *_, cache, _, _, _, picked = jax.lax.while_loop(lambda state: state[1], following, state)
    return cache, jax.tree.map(lambda x: rows_of_all(x, split), picked)
