"""The plan: which executables a config means, and which one serves which request. Pure arithmetic, imports no jax.

Nine phases: `prefill` runs T tokens of one slot, `head` turns rows of hidden states into logits and sampled ids,
`score` into log-probabilities of given tokens, `decode` runs one token, or several, of every slot it covers, `verify`
runs the last token of one slot with drafts of the next ones and keeps those that are right, `copy` gives a slot what
another one has of a text, `save` and `load` take a part of a slot out and put it back, `encode` turns whole texts into
vectors. Nothing outside the plan is ever executed.
"""

import dataclasses
import enum
from collections.abc import Collection, Sequence

from packlight.common.errors import ConfigError
from packlight.compile.config import DEFAULT_CONTEXT, CompileConfig
from packlight.model.spec.cache import CacheShape, check_kv_dtype
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.sharding import WHOLE, Split
from packlight.model.spec.state import CACHE_TILE, Room, whole_tiles
from packlight.model.spec.stretching import too_long

TEXT_TILE = 16  # texts are padded to a multiple of it
# Going over all weights once takes as long as multiplying them with about so many rows (bench/LOG.md): where they are
# unpacked to memory or registers by XLA's kernels, by native ones, and by these the experts that more rows choose.
PASS_ROWS, NATIVE_PASS_ROWS, NATIVE_EXPERTS_PASS_ROWS = 64, 10, 25


class Part(enum.IntEnum):
    """What of a slot is saved."""

    END = 1  # what is of its text's end alone: states of recurrences, rings of windows
    BLOCK = CACHE_TILE  # so many positions of layers that keep the whole text


class Phase(enum.StrEnum):
    """What a step does."""

    PREFILL = enum.auto()
    HEAD = enum.auto()
    SCORE = enum.auto()
    DECODE = enum.auto()
    VERIFY = enum.auto()
    COPY = enum.auto()
    SAVE = enum.auto()
    LOAD = enum.auto()
    ENCODE = enum.auto()


@dataclasses.dataclass(frozen=True, order=True)
class StepKey:
    """One executable."""

    phase: Phase
    rows: int  # tokens to prefill or verify, head or score rows, slots to decode, texts to encode, or a saved `Part`
    length: int = 0  # cached positions that the step sees, or tokens of each text; 0 for head and score
    tokens: int = 1  # that a decode step gives each slot at most

    @property
    def multiplied(self) -> int:
        """Rows that a product with a weight has."""
        return self.rows * (self.length if self.phase is Phase.ENCODE else 1)

    def __str__(self) -> str:
        several = f" x{self.tokens}" if self.tokens > 1 else ""
        return f"{self.phase}[{self.rows}{f', {self.length}' if self.length else ''}]{several}"


@dataclasses.dataclass(frozen=True)
class Chunk:
    """`count` tokens of a prompt from position `start`, run by `key` with padding up to its rows."""

    key: StepKey
    start: int
    count: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """The bounded set of steps of one model under one config.

    context: tokens a slot or a text may hold. capacity: cached positions allocated, the context in whole tiles. groups:
    of devices among which the slots are shared out; a group has neighbouring slots, and its own rows of a decode step.
    generates: whether there are the steps that predict tokens. scores: whether one of them tells how probable given
    tokens are. texts: of each encode step the tokens that a text may have, and how many texts it runs together; none
    for a model that is not made for embeddings. most_beside: rows of a chunk at most while other texts wait for their
    next token. pass_rows: what a pass over the weights costs, in rows. verified: rows of the steps that verify drafts.
    saves: what parts of a slot are saved, none without a prefix cache.
    """

    context: int
    capacity: int
    slots: int
    prefill_buckets: tuple[int, ...]
    decode_batch: tuple[int, ...]
    lengths: tuple[int, ...]
    head_rows: tuple[int, ...]
    groups: int = 1
    tokens_per_launch: int = 1
    generates: bool = True
    scores: bool = True
    texts: tuple[tuple[int, int], ...] = ()
    most_beside: int = 128
    pass_rows: int = PASS_ROWS
    verified: tuple[int, ...] = ()
    saves: tuple[Part, ...] = ()

    @property
    def steps(self) -> tuple[StepKey, ...]:
        """Every executable, in the order they are listed and built."""
        prefill = [StepKey(Phase.PREFILL, t, s) for t in self.prefill_buckets for s in self.lengths if s >= t]
        head = [StepKey(Phase.HEAD, r) for r in self.head_rows]
        score = [self.score_key] if self.scores and self.head_rows else []
        copy = [self.copy_key] if self.slots > self.groups else []
        decode = (self._decode(b, s) for b in self.decode_batch for s in self.lengths)
        verify = (StepKey(Phase.VERIFY, t, s) for t in self.verified for s in self.lengths if s >= t)
        saved = (key(part) for part in self.saves for key in (self.save_key, self.load_key))
        generating = (*prefill, *head, *score, *decode, *verify, *copy, *saved)
        encode = (StepKey(Phase.ENCODE, rows, tokens) for tokens, rows in self.texts)
        return (*(generating if self.generates else ()), *encode)

    @property
    def most_rows(self) -> int:
        """Rows that a step has at most while it goes through layers."""
        phases = (Phase.PREFILL, Phase.DECODE, Phase.VERIFY, Phase.ENCODE)
        return max(key.multiplied for key in self.steps if key.phase in phases)

    def text_groups(self, counts: Sequence[int]) -> tuple[tuple[StepKey, tuple[int, ...]], ...]:
        """Which texts, by their numbers, run together in which step, given how many tokens each has.

        A text's length alone decides its step, and one executable gives a row the same bits whatever the others hold.
        Raises ValueError when one does not fit the context.
        """
        if max(counts, default=0) > self.context:
            raise ValueError(f"{max(counts)} tokens do not fit a context of {self.context}")
        groups, shorter = [], 0
        for tokens, rows in self.texts:
            alike = [number for number, count in enumerate(counts) if shorter < count <= tokens]
            key = StepKey(Phase.ENCODE, rows, tokens)
            groups += [(key, tuple(alike[at : at + rows])) for at in range(0, len(alike), rows)]
            shorter = tokens
        return tuple(groups)

    def _decode(self, batch: int, length: int) -> StepKey:
        return StepKey(Phase.DECODE, batch, length, self.tokens_per_launch)

    @property
    def copy_key(self) -> StepKey:
        """The step that copies what one slot has to another one of its group."""
        return StepKey(Phase.COPY, 1, self.capacity)

    @property
    def score_key(self) -> StepKey:
        """The step that scores a prompt's tokens, so many at a time. There is one, so that no start waits for more."""
        return StepKey(Phase.SCORE, self.head_rows[-1])

    def save_key(self, part: Part) -> StepKey:
        """The step that takes a part of a slot out of the cache."""
        return StepKey(Phase.SAVE, part, self.capacity)

    def load_key(self, part: Part) -> StepKey:
        """The step that puts it back."""
        return StepKey(Phase.LOAD, part, self.capacity)

    def cache(self, model: ModelConfig, kv_dtype: str, split: Split) -> CacheShape:
        """What the slots' cache is, as devices of `split` share it."""
        return CacheShape(model, Room(self.slots, self.capacity, max(self.prefill_buckets, default=1), kv_dtype), split)

    def chunks(self, start: int, count: int, beside: bool = False) -> tuple[Chunk, ...]:
        """How `count` tokens from position `start` are run: full largest buckets, then the cheapest way for the rest.

        A chunk costs its rows, padding included, and one pass over the weights. Only the smallest may reach past the
        capacity, with padding. beside: while other texts wait for their next token, with rows to `most_beside`, or the
        smallest bucket's. What follows a chunk does not depend on those before it.
        Raises ValueError when the tokens do not fit the context.
        """
        if start < 0 or count < 1 or start + count > self.context:
            raise ValueError(f"tokens {start}..{start + count} do not fit a context of {self.context}")
        buckets = self.prefill_buckets
        if beside:
            buckets = tuple(rows for rows in buckets if rows <= self.most_beside) or buckets[:1]
        end, largest = start + count, buckets[-1]
        rows_at = {}
        while end - start >= largest and start + largest <= self.capacity:
            rows_at[start] = largest
            start += largest
        rows_at |= self._cheapest(buckets, start, end)
        chunks, at = [], end - count
        while at < end:
            rows = rows_at[at]
            seen = self.length(min(at + rows, self.capacity))
            chunks.append(Chunk(StepKey(Phase.PREFILL, rows, seen), at, min(end - at, rows)))
            at += rows
        return tuple(chunks)

    def _cheapest(self, buckets: tuple[int, ...], start: int, end: int) -> dict[int, int]:
        """Position -> rows of the chunk that begins the cheapest way from there to `end`."""
        cost, rows_at = {}, {}
        for at in range(end - 1, start - 1, -1):
            smallest, *larger = buckets
            fitting = [smallest, *(rows for rows in larger if at + rows <= self.capacity)]
            cost[at], negative = min((rows + self.pass_rows + cost.get(at + rows, 0), -rows) for rows in fitting)
            rows_at[at] = -negative
        return rows_at

    def length(self, positions: int) -> int:
        """The smallest length bucket that shows `positions` cached positions."""
        return next(s for s in self.lengths if s >= positions)

    def decode_key(self, slots: Collection[int], positions: int) -> tuple[StepKey, int]:
        """The smallest step that serves these slots when the longest of them has `positions` after it, and the rank of
        the first slot that it runs in each group: neighbours run together.
        """
        ranks = sorted(map(self.rank, slots))
        rows = self.groups * (1 + ranks[-1] - ranks[0])
        batch = next(b for b in self.decode_batch if b >= rows)
        return self._decode(batch, self.length(positions)), min(ranks[0], (self.slots - batch) // self.groups)

    def verify_key(self, tokens: int, start: int) -> StepKey | None:
        """The smallest step for so many tokens from position `start`; None where none has room for them."""
        rows = next((t for t in self.verified if t >= tokens and start + t <= self.capacity), None)
        return None if rows is None else StepKey(Phase.VERIFY, rows, self.length(start + rows))

    def rank(self, slot: int) -> int:
        """A slot's number in its group."""
        return slot % (self.slots // self.groups)

    def group(self, slot: int) -> int:
        """The number of the group that has a slot."""
        return slot // (self.slots // self.groups)

    def row(self, slot: int, key: StepKey, first: int) -> int:
        """Where a decode step has the row of a slot, when it begins with slots of rank `first`."""
        return self.group(slot) * (key.rows // self.groups) + self.rank(slot) - first

    def head_key(self, rows: int) -> StepKey:
        """The head step for up to `rows` rows, or the largest there is."""
        return StepKey(Phase.HEAD, next((r for r in self.head_rows if r >= rows), self.head_rows[-1]))


def plan_of(config: CompileConfig, model: ModelConfig) -> Plan:
    """The plan for a model. Raises as `make_plan` does."""
    mixed = model.expert_count > 0
    if config.context > model.longest_context:
        raise ConfigError(f"config key 'context' is {config.context}; ", *too_long(model, config.context))
    known = model.longest_context if config.context else model.context_length
    plan = make_plan(config, known, model.generates, model.encodes, mixed)
    if reason := check_kv_dtype(model, config.kv_dtype):
        raise ConfigError(f"config key 'kv_dtype' is {config.kv_dtype!r}; {reason}")
    shape = plan.cache(model, config.kv_dtype, WHOLE)
    if plan.verified and not shape.rewinds(plan.capacity, plan.capacity - plan.verified[-1] + 1):
        raise ConfigError("config key 'speculate': layers of the model cannot go back to an earlier token")
    if not config.prefix_cache_bytes or not model.generates:
        return plan
    both = {Part.BLOCK: shape.block_bytes(CACHE_TILE), Part.END: shape.end_bytes}
    return dataclasses.replace(plan, saves=tuple(part for part, size in both.items() if size))


def make_plan(
    config: CompileConfig, file_context: int, generates: bool = True, encodes: bool = False, mixed: bool = False
) -> Plan:
    """The plan for a model whose file states `file_context`.

    generates, encodes: what the model does (`ModelConfig.generates`, `ModelConfig.encodes`). mixed: whether it has
    experts.
    Raises ConfigError when the config asks for more context than the file has.
    """
    if config.context > file_context:
        raise ConfigError(f"config key 'context' is {config.context}; the model has only {file_context}")
    context = config.context or min(file_context, DEFAULT_CONTEXT)
    buckets = tuple(t for t in config.prefill_buckets if t <= context) or (min(config.prefill_buckets[0], context),)
    capacity = whole_tiles(context)
    native = NATIVE_EXPERTS_PASS_ROWS if mixed else NATIVE_PASS_ROWS
    shorter = {whole_tiles(length) for length in config.length_buckets}
    return Plan(
        context=context,
        capacity=capacity,
        slots=config.slots,
        prefill_buckets=buckets,
        decode_batch=config.decode_batch,
        lengths=(*sorted(s for s in shorter if s < capacity), capacity),
        head_rows=tuple(sorted({1, min(config.head_rows, context)})),
        groups=config.mesh.data,
        tokens_per_launch=config.tokens_per_launch,
        generates=generates,
        texts=_texts(config, context) if encodes else (),
        most_beside=config.prefill_rows_while_decoding,
        verified=tuple(t for t in config.speculate if t <= context) if generates else (),
        pass_rows=native if config.platform == "cpu" and config.cpu_kernels == "native" else PASS_ROWS,
    )


def _texts(config: CompileConfig, context: int) -> tuple[tuple[int, int], ...]:
    """`Plan.texts`: the config's buckets below the context, doubled up to it, in whole blocks of attention."""
    whole = {-(-bucket // TEXT_TILE) * TEXT_TILE for bucket in config.encode_buckets}
    most, longest = -(-context // TEXT_TILE) * TEXT_TILE, max(whole)
    while longest < most:
        longest *= 2
        whole.add(longest)
    sizes = [*sorted(bucket for bucket in whole if bucket < most), most]
    return tuple((tokens, config.mesh.data * max(1, config.encode_rows // tokens)) for tokens in sizes)
