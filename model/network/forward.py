"""The forward pass: `embed`, `layer`, `head`, and the loops over layers. Knows activations, not executables.

One function serves prefill (B = 1, T tokens of one slot) and decode (T = 1, the first B slots): x is (B, T, D), the
tokens of row b go to cache slot `slot + b` at `start[b] ..`, and each sees the slot's tokens up to itself.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.network import altup, perlayer
from packlight.model.network.collectives import gathered, look_up
from packlight.model.network.ffn import dense, moe
from packlight.model.network.mixers import attention, deltanet, mamba2, mla, shortconv
from packlight.model.network.norms import norm, softcap
from packlight.model.network.passing import first_of, pass_through
from packlight.model.network.products import finished
from packlight.model.network.state import Numerics
from packlight.model.network.step import Step
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.layers import LAYER, Layer, Period, periods
from packlight.model.spec.parts.attention import AttentionPart
from packlight.model.spec.parts.deltanet import DeltaNetPart
from packlight.model.spec.parts.dense import DensePart
from packlight.model.spec.parts.mamba2 import Mamba2Part
from packlight.model.spec.parts.mla import MlaPart
from packlight.model.spec.parts.moe import MoePart
from packlight.model.spec.parts.shortconv import ShortConvPart
from packlight.model.weights.params import Params, streamed_layers
from packlight.quant.kernels import native_ops
from packlight.quant.matmul import matmul
from packlight.quant.qtensor import gather_rows

# What each kind of part computes. A mixer takes (step, part, weights, index, state, h) and returns (y, state); a
# feed-forward part takes (step, part, weights, index, h, x) and returns y: normed h (B, T, D) -> y (B, T, D); h is x
# normed.
MIXERS: Mapping[type, Callable[..., tuple[jax.Array, Any]]] = {
    AttentionPart: attention.mix,
    DeltaNetPart: deltanet.mix,
    Mamba2Part: mamba2.mix,
    MlaPart: mla.mix,
    ShortConvPart: shortconv.mix,
}
FFNS: Mapping[type, Callable[..., jax.Array]] = {DensePart: dense.feed_forward, MoePart: moe.feed_forward}

State = dict[str, Any]  # as in `model.network.state.Cache`


def embed(step: Step, params: Params, tokens: jax.Array) -> jax.Array:
    """int32 (B, T) -> float32 (B, T, D): packed rows are gathered, then unpacked, each on the device that has it.

    Tables of positions and of token types are added where the model has them; padding behind the end of the positions
    reads the last one.
    """
    cfg = step.cfg
    x = look_up(params["token_embd"], tokens, step.numerics.split)
    x = x if cfg.embedding_scale == 1 else x * jnp.float32(cfg.embedding_scale)
    if "position_embd" in params:
        x = x + gather_rows(params["position_embd"], jnp.minimum(step.positions, cfg.context_length - 1))
    if "token_types" in params:
        x = x + gather_rows(params["token_types"], jnp.zeros_like(tokens))
    return norm(step, x, params, name) if (name := cfg.architecture.norms.embedding) else x


def hidden_states(step: Step, params: Params, tokens: jax.Array, state: State) -> tuple[jax.Array, State]:
    """int32 (B, T) -> hidden states (B, T, D) after the final norm, and the state that the step leaves."""
    x = embed(step, params, tokens)
    if step.cfg.per_layer_length:
        step = dataclasses.replace(step, inputs=perlayer.inputs(step, params, tokens, x))
    return layers(step, params, x, state)


def layers(step: Step, params: Params, x: jax.Array, state: State) -> tuple[jax.Array, State]:
    """Runs every layer and the final norm: hidden states (B, T, D), and the state that the step leaves.

    x: float32 (B, T, D). Loops carry the state, so that XLA updates it in place. Without a state, {}, each row is a
    whole text, of which nothing is kept.
    """
    arch = step.cfg.architecture
    x = altup.begin(step, params, x) if arch.streams else x
    carry, first = (x, state), collections.Counter()  # the layers so far that have each part
    kept = len(step.cfg.layers) - streamed_layers(params)
    fetched = first_of(params) if kept < len(step.cfg.layers) else {}
    for period in periods(step.cfg.layers[:kept]):
        carry = _loop(period.repeats, functools.partial(_period, step, params["blk"], period, first), carry)
        first.update({name: period.repeats * count for name, count in period.counts.items()})
    if fetched:
        run = functools.partial(_streamed, step, params["blk"], step.cfg.layers[-1])
        carry = pass_through(params, kept, fetched, run, carry)
    x, state = carry
    x = altup.end(step, params, x) if arch.streams else x
    return (norm(step, x, params, arch.norms.last) if arch.norms.last else x), state


def _period(step: Step, blk: Params, period: Period, first: Mapping[str, int], repeat: jax.Array, carry: Any) -> Any:
    """The layers of one repetition. first: how many layers before the period have each part."""
    counts, before = period.counts, collections.Counter()
    for length, kind in period.runs:
        base = {name: repeat * counts[name] + (first[name] + before[name]) for name in kind.names}
        carry = _loop(length, functools.partial(_numbered, step, blk, kind, base), carry)
        before.update(dict.fromkeys(base, length))
    return carry


def _numbered(
    step: Step, blk: Params, kind: Layer, base: Mapping[str, jax.Array], number: jax.Array, carry: Any
) -> Any:
    """Layer `number` of a run, whose first one is `base` of those that have each part."""
    run = layer if kind.altup is None else _layer_of_streams
    at, (x, state) = {name: first + number for name, first in base.items()}, carry
    if step.stream is not None:
        x = native_ops.advance(x, at[LAYER], step.stream)
    return run(step, blk, kind, at, x, state)


def _streamed(step: Step, blk: Params, kind: Layer, stacks: Params, number: jax.Array, carry: Any) -> Any:
    """Layer `number` of a model of equal layers, whose matrices are in `stacks` and all else in `blk`."""
    here = {name: blk.get(name, {}) | stacks.get(name, {}) for name in kind.names}
    return layer(step, here, kind, dict.fromkeys(kind.names, number), *carry)


def _loop(count: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
    """`body` with each number below `count`; one alone needs no loop."""
    return body(jnp.int32(0), carry) if count == 1 else lax.fori_loop(0, count, body, carry)


def layer(
    step: Step,
    blk: Params,
    kind: Layer,
    at: Mapping[str, jax.Array],  # the name of each part -> int32 (), the layer's number among those that have it
    x: jax.Array,  # float32 (B, T, D)
    state: State,
) -> tuple[jax.Array, State]:
    """One layer: x + mixers(norm(x)), then x + ffn(norm(x)), with the norms the family has.

    Side by side it is x + mixers(norm(x)) + ffn(norm(x)). Some families add to what comes out, or scale it.
    """
    cfg, index, every = step.cfg, at[LAYER], blk.get(LAYER, {})
    norms = cfg.architecture.norms

    def normed(x, name):
        before = int(norms.bare_first and name == norms.before_attention)  # layers that have no such norm
        return norm(step, x, every, name, index - jnp.int32(before)) if name in every else x

    def add(x, y, after):
        y = y if norms.of_sums else normed(y, after)
        x = x + (y if cfg.residual_scale == 1 else y * jnp.float32(cfg.residual_scale))
        return normed(x, after) if norms.of_sums else x

    begin, mixed = x, []
    if kind.mixers:
        first = norms.attention_alone if norms.attention_alone in every else norms.before_attention
        h = x if kind.bare else normed(x, first)
        for mixer in kind.mixers:
            with jax.named_scope(mixer.name):
                mix = MIXERS[type(mixer)]
                y, kept = mix(step, mixer, blk[mixer.name], at[mixer.name], state.get(mixer.state_name), h)
                mixed, state = [*mixed, y], state | ({} if kept is None else {mixer.state_name: kept})
        x = add(x, functools.reduce(jnp.add, mixed), norms.after_attention)
        if norms.after_attention_again in every:
            x = normed(begin + x, norms.after_attention_again)
        if kind.laurel is not None:
            beside = altup.laurel(step, blk[kind.laurel.name], at[kind.laurel.name], h)
            x = (x + beside) * jnp.float32(0.5**0.5)
    if kind.ffn is not None:
        one_norm = norms.before_ffn_optional and norms.before_ffn not in every
        source = begin if cfg.side_by_side or one_norm else x
        with jax.named_scope(kind.ffn.name):
            h = normed(source, norms.before_attention if one_norm else norms.before_ffn)
            y = FFNS[type(kind.ffn)](step, kind.ffn, blk[kind.ffn.name], at[kind.ffn.name], h, source)
            x = add(x, y, norms.after_ffn)
    if kind.per_layer is not None:
        with jax.named_scope(kind.per_layer.name):
            x = x + perlayer.added(step, kind.per_layer, blk[kind.per_layer.name], at[kind.per_layer.name], x)
    return x * every["layer_output_scale"][index, 0] if "layer_output_scale" in every else x, state


def _layer_of_streams(
    step: Step,
    blk: Params,
    kind: Layer,
    at: Mapping[str, jax.Array],
    streams: jax.Array,  # float32 (STREAMS, B, T, D)
    state: State,
) -> tuple[jax.Array, State]:
    """`layer` on the first of the streams, which all are predicted before it and corrected behind it.

    The second embedding is read with the first stream and added to the others.
    """
    assert kind.altup is not None
    assert kind.per_layer is not None
    weights, index = blk[kind.altup.name], at[kind.altup.name]
    predicted = altup.predict(step, weights, index, streams)
    y, state = layer(step, blk, dataclasses.replace(kind, altup=None, per_layer=None), at, predicted[0], state)
    streams = altup.correct(step, weights, index, predicted, y)
    read = streams[0] * weights["altup_correct_scale"][index][None, None, :]
    with jax.named_scope(kind.per_layer.name):
        new = perlayer.added(step, kind.per_layer, blk[kind.per_layer.name], at[kind.per_layer.name], read)
    return jnp.concatenate([streams[:1], streams[1:] + new[None]]), state


def head(
    cfg: ModelConfig,
    params: Params,
    hidden: jax.Array,  # float32 (M, D), normed
    numerics: Numerics,
) -> jax.Array:  # float32 (M, V)
    """Logits, from `output` or, in a model that ties them, from `token_embd`."""
    with jax.named_scope("head"):
        weights = params.get("output", params["token_embd"])
        logits = matmul(hidden.astype(numerics.dtype), weights, numerics.paths[weights.qtype])
        logits = gathered(finished(logits, params, "output"), cfg.vocab_size, numerics.split)
        if cfg.logit_scale != 1:
            logits = logits * jnp.float32(cfg.logit_scale)
        return softcap(logits, cfg.softcaps[1])
