"""A second, smaller model that guesses what the first one says next: whether it can, and what it is built for. Reads no
weights and imports no jax.

Its guesses are token ids, so both need the same tokens. Source: llama.cpp's `common_speculative_are_compatible`.
"""

import dataclasses
import os
from typing import NamedTuple

from packlight.common.errors import Argument, ConfigError
from packlight.common.text import shown, shown_path
from packlight.compile.config import CompileConfig
from packlight.compile.plan import Plan, plan_of
from packlight.model.gguf.reader import GGUFFile, open_gguf
from packlight.model.spec.cache import check_kv_dtype
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.sharding import WHOLE
from packlight.model.spec.weights import check
from packlight.model.text.tokenizer import Tokenizer
from packlight.sources.find import find

# llama.cpp allows so many tokens more or fewer, as vocabularies are padded, and other words for the first special ones.
MOST_MORE, FIRST_COMPARED = 128, 5
SHORTEST = 2  # tokens of a chunk: behind drafts that were all right, the last of them and the next token are read


class Draft(NamedTuple):
    """A file that makes drafts, checked."""

    file: GGUFFile
    model: ModelConfig
    tokenizer: Tokenizer


def open_draft(path: str | os.PathLike[str], file: GGUFFile, model: ModelConfig, tokenizer: Tokenizer) -> Draft:
    """Opens the file or name that makes drafts for a model. Raises as `prepare` does, and ConfigError where either of
    the models generates nothing, or the tokens of both are not the same.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        said = f" is the file or the name of a model, not {shown(repr(path))}"
        raise ConfigError(Argument("draft_model", shown(str(path))), said)
    named = Argument("draft_model", shown_path(os.fspath(path)))
    if not model.generates:
        raise ConfigError(named, f": {shown_path(file.path)} is an encoder, which generates nothing")
    found = open_gguf(find(path))
    draft = Draft(found, ModelConfig.from_gguf(found), Tokenizer.from_file(found))
    check(found, draft.model)
    if not draft.model.generates:
        raise ConfigError(named, f": a {draft.model.architecture.name} model is an encoder, which generates nothing")
    if difference := _difference(draft.tokenizer, tokenizer):
        raise ConfigError(named, f": {difference} in {shown_path(file.path)}; drafts need the same tokens")
    return draft


def _difference(draft: Tokenizer, other: Tokenizer) -> str | None:
    """The first thing in which a draft model's vocabulary is not the other one's, in words; None: there is none."""
    if draft.kind != other.kind:
        return f"its tokenizer is {draft.kind!r}, and {other.kind!r}"
    for name in ("bos", "eos"):
        mine, its = ((getattr(each, f"add_{name}"), getattr(each, f"{name}_id")) for each in (draft, other))
        if mine[0] != its[0] or (mine[0] and mine[1] != its[1]):
            said = (f"{token}" if added else "none" for added, token in (mine, its))
            return f"the {name} token that texts get is {next(said)}, and {next(said)}"
    if abs(draft.vocab_size - other.vocab_size) > MOST_MORE:
        return f"it has {draft.vocab_size} tokens, more than {MOST_MORE} from the {other.vocab_size}"
    token = draft.first_difference(other, FIRST_COMPARED)
    if token is None:
        return None
    mine, its = (shown(each.piece(token)) for each in (draft, other))
    return f"token {token} is {mine!r}, and {its!r}"


def draft_config(draft: Draft, config: CompileConfig, plan: Plan) -> CompileConfig:
    """What a draft model is built for beside a model with this config and plan: one slot, as many tokens a launch as a
    step verifies drafts, and chunks no longer than may be read between two tokens. Beside streamed weights its own are
    mapped, or resident on a GPU or TPU: drafts pay because they need not be streamed.

    Raises ConfigError where its layers cannot go back to the token before those drafts, and where its cache cannot be
    of the other one's type.
    """
    drafts = max(plan.verified, default=SHORTEST) - 1
    buckets = [rows for rows in config.prefill_buckets if rows <= config.prefill_rows_while_decoding]
    made = dataclasses.replace(
        config,
        context=min(plan.context, draft.model.longest_context),
        prefill_buckets=tuple(sorted({SHORTEST, *(buckets or config.prefill_buckets[:1])})),
        decode_batch=(1,),
        tokens_per_launch=drafts,
        speculate=(),
        head_rows=1,
        prefix_cache_bytes=0,
        weights={"streamed": "resident" if config.pins else "mapped"}.get(config.weights, config.weights),
    )
    name = Argument("draft_model", shown_path(draft.file.path))
    if reason := check_kv_dtype(draft.model, made.kv_dtype):
        raise ConfigError(name, f": keys and values are kept in {made.kv_dtype}, and here {reason}")
    its = plan_of(made, draft.model)
    if not its.cache(draft.model, made.kv_dtype, WHOLE).rewinds(its.capacity, its.capacity - drafts):
        raise ConfigError(name, ": layers of the model cannot go back to an earlier token")
    return made
