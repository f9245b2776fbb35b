"""The traced steps, prefill, head, score, decode, verify, copy and encode, and what each is lowered from.

Weights are arguments, the cache is donated, and whatever differs between requests is an array: nothing a user
changes while serving leads to another executable.

A step takes the weights, the cache (None for head, score and encode, which need none) and a NamedTuple of all else.
`Steps.arguments` gives the shape of each field and its place on the devices; executables are lowered from that, and
the engine calls them with the same classes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from packlight.compile.config import CompileConfig
from packlight.compile.encode import EncodeArgs, EncodeResult, encode
from packlight.compile.kernels import KernelPlan, has_wgmma
from packlight.compile.plan import Part, Phase, Plan, StepKey
from packlight.model.network.collectives import anywhere, data_number, from_owner, rows_of_all
from packlight.model.network.forward import head, hidden_states
from packlight.model.network.state import Cache, Numerics, Rows, copied, loaded, saved
from packlight.model.network.step import Step
from packlight.model.sampling.adjust import Adjustment, nothing, table_size
from packlight.model.sampling.chain import (
    Picked,
    SlotSampling,
    finite,
    logprobs,
    nothing_picked,
    pick,
    slot_sampling,
)
from packlight.model.spec.cache import CacheShape
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.sharding import DATA
from packlight.model.spec.state import Buffer
from packlight.model.weights.params import Params
from packlight.model.weights.placement import P, Placement

Argument = Any  # a jax.Array where a step is traced, numpy's where it is called


class PrefillArgs(NamedTuple):
    """A chunk of one slot's prompt, the same on all devices."""

    tokens: Argument  # int32 (T,), padded
    slot: Argument  # int32 ()
    start: Argument  # int32 (), position of tokens[0]
    real: Argument  # int32 (), tokens that are no padding


class PrefillResult(NamedTuple):
    """What the chunk leaves."""

    cache: Cache
    hidden: jax.Array  # float32 (T, D)
    last: jax.Array  # float32 (1, D), of the last real token


class Choice(NamedTuple):
    """How the token behind one row of logits is picked: what `pick` takes after the logits."""

    adjustment: Adjustment
    sampling: SlotSampling
    position: Argument  # int32 (1,)
    is_end: Argument  # bool (V,), tokens that end a generation


class HeadArgs(NamedTuple):
    """Hidden states whose logits are wanted, the same on all devices."""

    hidden: Argument  # float32 (R, D)
    choice: Choice | None  # of one row, which may begin a text; None of more


class HeadResult(NamedTuple):
    """Logits, and what follows them."""

    logits: jax.Array  # float32 (R, V)
    picked: Picked | None  # where there is a choice
    finite: jax.Array | None  # bool (R,), rows without NaN and infinity, where there is none: `picked` says it too


class ScoreArgs(NamedTuple):
    """Hidden states of a text and what follows each, the same on all devices."""

    hidden: Argument  # float32 (R, D)
    next_ids: Argument  # int32 (R,)


class ScoreResult(NamedTuple):
    """How probable the model itself finds what follows, and what it finds most probable."""

    logprob: jax.Array  # float32 (R,)
    top_logprobs: jax.Array  # float32 (R, 20), highest first
    top_ids: jax.Array  # int32 (R, 20)
    finite: jax.Array  # bool (R,), rows whose logits are without NaN and infinity


class DecodeArgs(NamedTuple):
    """One launch of B slots, which the data groups share like the cache's."""

    first: Argument  # int32 (), the first of them in each group
    tokens: Argument  # int32 (B,), the last token of each slot
    wanted: Argument  # int32 (B,), tokens to give each slot, 0 to the key's `tokens`
    past_end: Argument  # bool (B,), whether the slot goes on after an end token
    adjustment: Adjustment  # of B slots, for all the tokens
    sampling: SlotSampling  # each (B,)
    is_end: Argument  # bool (V,), tokens that end a generation


class VerifyArgs(NamedTuple):
    """The last token of one slot and drafts of what follows it, the same on all devices."""

    chunk: PrefillArgs  # as if they were of its prompt
    adjustment: Adjustment  # of one slot, for all the tokens
    sampling: SlotSampling  # each (1,)
    is_end: Argument  # bool (V,), tokens that end a generation


class CopyArgs(NamedTuple):
    """What a slot gets of another one of its group, the same on all devices."""

    source: Argument  # int32 ()
    target: Argument  # int32 ()
    count: Argument  # int32 (), positions


class SaveArgs(NamedTuple):
    """Where a part of a slot lies."""

    slot: Argument  # int32 ()
    start: Argument  # int32 (), its first position; of an end none


class LoadArgs(NamedTuple):
    """A part of a slot, and where it comes to lie."""

    slot: Argument  # int32 ()
    start: Argument  # int32 ()
    arrays: tuple[Argument, ...]  # as `save` has made them


class DecodeResult(NamedTuple):
    """What the launch leaves."""

    cache: Cache
    picked: Picked  # each (B, tokens)


class VerifyResult(NamedTuple):
    """What is left of the drafts."""

    cache: Cache  # the slot ends with the last draft that is right
    picked: Picked  # each (T,), behind each token; means nothing behind a wrong draft
    accepted: jax.Array  # int32 (), how many drafts are right


@dataclasses.dataclass(frozen=True)
class Steps:
    """What the steps of a plan have in common, and from it each one's function and the shapes of its arguments."""

    model: ModelConfig
    config: CompileConfig  # with definite kernels
    plan: Plan
    kernels: KernelPlan
    placement: Placement

    @property
    def cache_shape(self) -> CacheShape:
        """What the cache holds."""
        return self.plan.cache(self.model, self.config.kv_dtype, self.placement.split)

    def cache(self) -> Cache:
        """The cache as shapes with their places on the devices: one for all executables."""

        def shape(buffer: Buffer) -> Any:
            return self._shaped(jnp.dtype(buffer.dtype), *buffer.shape, spec=self._spec(buffer))

        return self._cache_of(shape)

    def empty_cache(self) -> Cache:
        """The cache as zeros on the devices, which may be donated; a CPU's take memory where they are written."""
        return self._cache_of(lambda each: self.placement.zeros(each.shape, each.dtype, self._spec(each)))

    def _cache_of(self, make: Callable[[Buffer], Any]) -> Cache:
        """The cache with what `make` makes of each buffer."""
        shape = self.cache_shape
        return Cache(make(shape.length), jax.tree.map(make, shape.state))

    def _spec(self, buffer: Buffer) -> P:
        return P(*self.placement.split.axes(buffer))

    def arguments(self, key: StepKey, params: Params) -> tuple[Params, Cache | None, Any]:
        """What the step is called with: shapes of all devices' parts together, with their places.

        params: arrays, or shapes that say how they lie on the devices.
        """
        shared = P(DATA) if key.phase in (Phase.DECODE, Phase.ENCODE) else P()
        array = functools.partial(self._shaped, spec=shared)
        ints = functools.partial(array, jnp.int32)
        rows, vocab = key.rows, self.model.vocab_size
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
        if key.phase is Phase.ENCODE:
            pooling = self._shaped(jnp.int32, spec=P())
            return params, None, EncodeArgs(ints(rows, key.length), ints(rows), pooling)
        texts = 1 if key.phase is Phase.VERIFY else rows
        neutral = nothing(texts, vocab, table_size(vocab, self.plan.context)), slot_sampling([None] * texts)
        adjustment, sampling = jax.tree.map(lambda x: array(x.dtype, *x.shape), neutral)
        is_end = self._shaped(jnp.bool_, vocab, spec=P())
        match key.phase:
            case Phase.PREFILL | Phase.VERIFY:
                chunk = PrefillArgs(ints(rows), ints(), ints(), ints())
                verified = VerifyArgs(chunk, adjustment, sampling, is_end)
                return params, self.cache(), chunk if key.phase is Phase.PREFILL else verified
            case Phase.HEAD:
                choice = Choice(adjustment, sampling, ints(rows), is_end) if rows == 1 else None
                return params, None, HeadArgs(array(jnp.float32, rows, self.model.embedding_length), choice)
            case Phase.SCORE:
                return params, None, ScoreArgs(array(jnp.float32, rows, self.model.embedding_length), ints(rows))
            case Phase.COPY:
                return params, self.cache(), CopyArgs(ints(), ints(), ints())
            case Phase.SAVE:
                return params, self.cache(), SaveArgs(ints(), ints())
            case Phase.LOAD:
                arrays = tuple(array(jnp.dtype(each.dtype), *part) for each, part in self._parts(key.rows))
                return params, self.cache(), LoadArgs(ints(), ints(), arrays)
            case Phase.DECODE:
                flags = array(jnp.bool_, rows)
                first = self._shaped(jnp.int32, spec=P())
                asked = DecodeArgs(first, ints(rows), ints(rows), flags, adjustment, sampling, is_end)
                return params, self.cache(), asked

    def function(self, key: StepKey) -> Callable[[Params, Cache | None, Any], Any]:
        """The traceable step, as one device runs it; see the functions below."""
        numerics = self.numerics(key)
        run = {
            Phase.PREFILL: prefill,
            Phase.HEAD: head_step,
            Phase.SCORE: score,
            Phase.DECODE: functools.partial(decode, key.tokens),
            Phase.VERIFY: verify,
            Phase.COPY: functools.partial(copy, self.cache_shape.state),
            Phase.SAVE: functools.partial(save, self.cache_shape, key.rows),
            Phase.LOAD: functools.partial(load, self.cache_shape, key.rows),
            Phase.ENCODE: encode,
        }

        def step(params: Params, cache: Cache | None, args: Any) -> Any:
            return run[key.phase](self.model, numerics, params, cache, args)

        return step

    def _parts(self, part: int) -> list[tuple[Buffer, tuple[int, ...]]]:
        """(array of the cache, shape of what of it is in a part of a slot)."""
        shape = self.cache_shape
        return [
            (each, _part_shape(each.shape, part))
            for each in jax.tree.leaves(shape.state)
            if shape.keeps_text(each) == (part == Part.BLOCK)
        ]

    def numerics(self, key: StepKey) -> Numerics:
        """What the plan decided for a step's traced code."""
        if key.phase is Phase.ENCODE:
            kernel = self.kernels.whole_texts
        else:
            queries = key.rows if key.phase in (Phase.PREFILL, Phase.VERIFY) else 1
            kernel = self.kernels.attention(queries, has_wgmma(self.placement.flat[0]))
        dtype, split = jnp.dtype(self.config.activation_dtype), self.placement.split
        native = self.kernels.path == "native"
        return Numerics(self.kernels.products, dtype, key.length, self.plan.context, split, kernel, native)

    def lower(self, key: StepKey, params: Params) -> jax.stages.Lowered:
        """The step, lowered for the devices; its cache is donated. params: as for `arguments`."""
        arguments = self.arguments(key, params)
        step = self.function(key)
        if not self.placement.single:
            step = self._on_mesh(step, key, arguments)
        step.__name__ = key.phase.value  # profiles and the program's text show it
        with jax.enable_x64(False):  # a user's 64-bit default must not change the steps
            donated = () if key.phase is Phase.SAVE else ("cache",)
            return jax.jit(step, donate_argnames=donated).lower(*arguments)

    def _on_mesh(self, step: Callable[..., Any], key: StepKey, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        """`step` run by every device of the mesh on its parts of the arguments."""
        specs = jax.tree.map(lambda x: x.sharding.spec, arguments)
        cache: Any = specs[1]
        replicated: Any = P()
        shared: Any = P(DATA)
        results = {
            Phase.PREFILL: PrefillResult(cache, replicated, replicated),
            Phase.HEAD: replicated,
            Phase.SCORE: replicated,
            Phase.DECODE: DecodeResult(cache, replicated),
            Phase.VERIFY: VerifyResult(cache, replicated, replicated),
            Phase.COPY: cache,
            Phase.ENCODE: EncodeResult(replicated, replicated, shared),
        }[key.phase]
        # Every device computes what is replicated from the same numbers; the check knows no foreign calls.
        return jax.shard_map(step, mesh=self.placement.mesh, in_specs=specs, out_specs=results, check_vma=False)

    def _shaped(self, dtype: Any, *shape: int, spec: P) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.placement.sharding(spec))


def prefill(
    cfg: ModelConfig,
    numerics: Numerics,
    params: Params,
    cache: Cache,
    args: PrefillArgs,
) -> PrefillResult:
    """Runs a chunk of one slot's prompt.

    Padding writes keys and values behind the real ones, where no query looks before they are overwritten; a state that
    cannot be written over takes none of it.
    """
    tokens, _, start, real = args
    split, (slot, mine) = numerics.split, _own(args.slot, cache, numerics)
    rows = Rows(slot, start[None], (start + real)[None], mine[None])
    step = Step.of(cfg, numerics, params, rows, tokens.shape[0])
    hidden, state = hidden_states(step, params, tokens[None], cache.state)
    hidden = from_owner(hidden[0], mine, split)
    last = jax.lax.dynamic_slice_in_dim(hidden, real - 1, 1)
    return PrefillResult(Cache(_ended(cache.length, slot, mine, start + real), state), hidden, last)


def _own(slot: jax.Array, cache: Cache, numerics: Numerics) -> tuple[jax.Array, jax.Array]:
    """A slot's number in its data group, int32 (), and whether that group is this device's, bool ()."""
    if numerics.split.data == 1:
        return slot, jnp.ones((), jnp.bool_)
    group, slot = jnp.divmod(slot, jnp.int32(cache.length.shape[0]))
    return slot, group == data_number(numerics.split)  # the other groups run along and leave their slots as they are


def _ended(lengths: jax.Array, slot: jax.Array, mine: jax.Array, end: jax.Array) -> jax.Array:
    """The slots' lengths, int32 (B,), with another end of one of them."""
    return lengths.at[slot].set(jnp.where(mine, end, lengths[slot]))


def verify(
    cfg: ModelConfig,
    numerics: Numerics,
    params: Params,
    cache: Cache,
    args: VerifyArgs,
) -> VerifyResult:
    """Picks the token behind a slot's last one, and behind each draft as long as the drafts are what was picked.

    Draws are functions of seed and position: a right draft leads to the token that would have been picked without it.
    """
    tokens, start, drafts = args.chunk.tokens, args.chunk.start, args.chunk.real - 1
    read = prefill(cfg, numerics, params, cache, args.chunk)
    count = tokens.shape[0]
    adjustment, sampling = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), (args.adjustment, args.sampling)
    )
    position = start + 1 + jnp.arange(count, dtype=jnp.int32)
    logits = head(cfg, params, read.hidden, numerics)
    picked = pick(logits, adjustment, sampling, position, args.is_end, numerics.native)
    right = (picked.ids[:-1] == tokens[1:]) & (jnp.arange(count - 1) < drafts)
    accepted = jnp.sum(jnp.cumprod(right.astype(jnp.int32)), dtype=jnp.int32)
    slot, mine = _own(args.chunk.slot, cache, numerics)
    length = _ended(read.cache.length, slot, mine, start + 1 + accepted)
    return VerifyResult(Cache(length, read.cache.state), picked, accepted)


def head_step(cfg: ModelConfig, numerics: Numerics, params: Params, _cache: None, args: HeadArgs) -> HeadResult:
    """Turns hidden states into logits and, where there is a choice, into the token that follows."""
    logits = head(cfg, params, args.hidden, numerics)
    if args.choice is None:
        return HeadResult(logits, None, finite(logits))
    return HeadResult(logits, pick(logits, *args.choice, numerics.native), None)


def score(cfg: ModelConfig, numerics: Numerics, params: Params, _cache: None, args: ScoreArgs) -> ScoreResult:
    """Log-probabilities of given tokens: of their logits, nothing leaves the step."""
    logits = head(cfg, params, args.hidden, numerics)
    ids = jnp.asarray(args.next_ids)
    return ScoreResult(*logprobs(logits, ids, jnp.zeros_like(ids), numerics.native), finite(logits))


class Launch(NamedTuple):
    """What a launch of several tokens carries from one to the next."""

    done: jax.Array  # int32 (), tokens that every slot has had its turn for
    any_running: jax.Array  # bool (), of any data group
    cache: Cache
    tokens: jax.Array  # int32 (B,), the last of each slot
    running: jax.Array  # bool (B,)
    mu: jax.Array  # float32 (B,), Mirostat's state
    picked: Picked  # each (B, at_most), filled up to `done`


def decode(
    at_most: int,
    cfg: ModelConfig,
    numerics: Numerics,
    params: Params,
    cache: Cache,
    args: DecodeArgs,
) -> DecodeResult:
    """Picks up to `at_most` tokens for B slots from the first on, of each data group where there are several.

    A slot runs until it has what is wanted, or an end token, or logits that are not finite; what is picked for it
    after that means nothing. One that does not run keeps its cache and its length; it counts as empty, so that what it
    held does not lengthen the attention loop.
    """
    split = numerics.split
    batch, first = args.tokens.shape[0], jnp.asarray(args.first)

    def one(cache: Cache, tokens: jax.Array, running: jax.Array, mu: jax.Array) -> tuple[Cache, Picked]:
        held = jax.lax.dynamic_slice_in_dim(cache.length, first, batch)
        start = jnp.where(running, held, 0)
        rows = Rows(first, start, start + 1, running)
        step = Step.of(cfg, numerics, params, rows, 1)
        hidden, state = hidden_states(step, params, tokens[:, None], cache.state)
        logits, sampling = head(cfg, params, hidden[:, 0], numerics), args.sampling._replace(mirostat_mu=mu)
        picked = pick(logits, args.adjustment, sampling, start + 1, args.is_end, numerics.native)
        length = jax.lax.dynamic_update_slice_in_dim(cache.length, held + running.astype(jnp.int32), first, 0)
        return Cache(length, state), picked

    def following(state: Launch) -> Launch:
        cache, picked = one(state.cache, state.tokens, state.running, state.mu)
        all_picked = jax.tree.map(lambda every, new: every.at[:, state.done].set(new), state.picked, picked)
        done = state.done + 1
        goes_on = (done < args.wanted) & picked.finite & (args.past_end | ~picked.is_end)
        running = state.running & goes_on
        any_running = anywhere(jnp.any(running), split)
        return Launch(done, any_running, cache, picked.ids, running, picked.mirostat_mu, all_picked)

    running, mu = args.wanted > 0, jnp.asarray(args.sampling.mirostat_mu)
    if at_most == 1:
        cache, picked = one(cache, args.tokens, running, mu)
        picked = jax.tree.map(lambda x: x[:, None], picked)
    else:
        room, any_running = nothing_picked(batch, at_most, cfg.vocab_size), anywhere(jnp.any(running), split)
        begin = Launch(jnp.int32(0), any_running, cache, args.tokens, running, mu, room)
        last = jax.lax.while_loop(lambda state: state.any_running, following, begin)
        cache, picked = last.cache, last.picked
    return DecodeResult(cache, jax.tree.map(lambda x: rows_of_all(x, split), picked))


def copy(
    buffers: dict[str, Any],
    cfg: ModelConfig,
    numerics: Numerics,
    params: Params,
    cache: Cache,
    args: CopyArgs,
) -> Cache:
    """Gives one slot the first positions of another one, and all that is kept of its text's end.

    buffers: what the cache's arrays are. Lengths stay as they are.
    """
    source, target, count = args
    split = numerics.split
    if split.data > 1:  # the other groups copy a slot to where it is
        group, source = jnp.divmod(source, jnp.int32(cache.length.shape[0]))
        target = jnp.where(group == data_number(split), target % jnp.int32(cache.length.shape[0]), source)

    def one(buffer: Buffer, array: jax.Array) -> jax.Array:
        return copied(array, source, target, count if buffer.along_text else None)

    return Cache(cache.length, jax.tree.map(one, buffers, cache.state))


def save(
    shape: CacheShape,
    part: int,
    cfg: ModelConfig,
    numerics: Numerics,
    params: Params,
    cache: Cache,
    args: SaveArgs,
) -> tuple[jax.Array, ...]:
    """What a part of a slot is (`Part`), array by array; the cache stays as it is."""
    return tuple(
        saved(array, args.slot, args.start, _part_shape(array.shape, part))
        for buffer, array in zip(*map(jax.tree.leaves, (shape.state, cache.state)), strict=True)
        if shape.keeps_text(buffer) == (part == Part.BLOCK)
    )


def load(
    shape: CacheShape,
    part: int,
    cfg: ModelConfig,
    numerics: Numerics,
    params: Params,
    cache: Cache,
    args: LoadArgs,
) -> Cache:
    """The cache with a part of a slot as it was saved; lengths stay as they are."""
    arrays = iter(args.arrays)

    def one(buffer: Buffer, array: jax.Array) -> jax.Array:
        if shape.keeps_text(buffer) != (part == Part.BLOCK):
            return array
        return loaded(array, args.slot, args.start, next(arrays))

    return Cache(cache.length, jax.tree.map(one, shape.state, cache.state))


def _part_shape(shape: tuple[int, ...], part: int) -> tuple[int, ...]:
    """The shape of what of an array of the cache is in a part of a slot."""
    one_slot = (shape[0], *shape[2:])
    return (*one_slot[:-2], int(part), one_slot[-1]) if part == Part.BLOCK else one_slot
