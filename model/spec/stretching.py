"""A model whose positions a caller stretches: `RopeChanges` in place of what its file says. Imports no jax.

The context may then grow as far as positions are stretched: with a factor, or with YaRN, so many times the length that
the model was trained with. A larger base slows the slowest pair of channels least: the context may be so much longer
that this pair turns no further than it did in training. Layers with a sliding window turn as the file says, because
they never see further than they did. Sources: llama.cpp's `llama_context` and `get_rope_freq_base`, YaRN (2309.00071).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from packlight.common.errors import Argument, ConfigError
from packlight.model.gguf.reader import GGUFFile
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.keys import Keys
from packlight.model.spec.parts.attention import AttentionPart
from packlight.model.spec.parts.mla import MlaPart
from packlight.model.spec.positions import RopeScaling, read_rope_scaling
from packlight.model.spec.rope_changes import RopeChanges

LONG = "rope_factors_long"  # tensor of long-rope's divisors


def stretched(model: ModelConfig, file: GGUFFile, changes: RopeChanges) -> ModelConfig:
    """The model of `file` with the changes. Raises ConfigError for those that are impossible, or change nothing."""
    if not changes.given:
        return model
    first = changes.given[0]
    if not _turns(model):
        raise ConfigError(first, ": no layer of the model that sees all of a text rotates by positions")
    if f"{LONG}.weight" in file.tensors:
        raise ConfigError(first, f": the file stretches positions by numbers of its own ('{LONG}', long-rope)")
    scaling = _scaling(model, file.metadata, changes)
    base = changes.rope_freq_base or model.rope_freq_base
    if (scaling, base) == (model.rope_scaling, model.rope_freq_base):
        raise ConfigError(first, ": nothing changes, as the file says so already")
    return dataclasses.replace(
        model,
        rope_scaling=scaling,
        rope_freq_base=base,
        rope_scaling_swa=model.rope_scaling if any(model.slides) else None,
        rope_reach=_reach(model, scaling, base),
        rope_given=tuple(each.name for each in changes.given),
    )


def too_long(model: ModelConfig, context: int) -> tuple[str | Argument, ...]:
    """The parts of a message about a context that the model does not have, with arguments that would stretch it."""
    known = f"the model has only {model.longest_context}"
    if model.rope_given or not _turns(model) or model.architecture.rope.two_contexts:
        return (known,)
    factor = math.ceil(context / _trained(model))
    return f"{known}; ", Argument("rope_scaling", "yarn"), " and ", Argument("rope_scale", factor), " would stretch it"


def in_words(model: ModelConfig) -> str:
    """How far positions are stretched at which base, "" where none rotate."""
    if not _turns(model):
        return ""
    sliding = "; sliding layers as in the file" if model.rope_given and any(model.slides) else ""
    return f"{model.rope_scaling}, base {model.rope_freq_base:g}{sliding}"


def _turns(model: ModelConfig) -> bool:
    """Whether positions rotate in any layer that sees all of a text."""
    return any(
        isinstance(mixer, MlaPart) or (isinstance(mixer, AttentionPart) and mixer.rotation and not mixer.window)
        for mixer in model.mixers
    )


def _scaling(model: ModelConfig, metadata: Mapping[str, Any], changes: RopeChanges) -> RopeScaling:
    """What the file would say with the changes in its keys."""
    before = model.rope_scaling
    if not (changes.rope_scaling or changes.factors or changes.yarn):
        return before
    kind = changes.rope_scaling or ("yarn" if before.kind == "yarn" else "linear")
    if kind != "yarn" and changes.yarn:
        raise ConfigError(changes.yarn[0], f": the scaling is {kind}; it goes with ", Argument("rope_scaling", "yarn"))
    factor = changes.factor or before.factor
    asked = (*changes.factors, *changes.given)[0]
    if kind != "none" and factor == 1:
        raise ConfigError(asked, ": a factor of 1 stretches nothing; give ", Argument("rope_scale", "N"))
    if kind == "yarn" and factor < 1:
        raise ConfigError(asked, ": YaRN stretches, by more than 1")
    if changes.yarn_ext_factor == 0:
        kind = "linear"
        if others := [each for each in changes.yarn if each.name not in ("yarn_ext_factor", "yarn_attn_factor")]:
            raise ConfigError(others[0], ": nothing is left of it with ", changes.argument("yarn_ext_factor"))
    if kind == "linear" and model.latent is not None:
        raise ConfigError(asked, ": latent attention is stretched by YaRN only, ", Argument("rope_scaling", "yarn"))
    keys = {
        "type": kind,
        "factor": factor,
        "original_context_length": changes.yarn_orig_ctx,
        "attn_factor": changes.yarn_attn_factor and before.attn_factor * changes.yarn_attn_factor,
        "yarn_beta_slow": changes.yarn_beta_slow,
        "yarn_beta_fast": changes.yarn_beta_fast,
    }
    prefix = f"{model.architecture.name}.rope.scaling."
    replaced = {f"{prefix}{key}": value for key, value in keys.items() if value is not None}
    scaling = read_rope_scaling(Keys({**metadata, **replaced}))
    if scaling.kind == "yarn" and scaling.beta_fast <= scaling.beta_slow:
        raise ConfigError(asked, f": beta_fast {scaling.beta_fast:g} is not above beta_slow {scaling.beta_slow:g}")
    share = changes.yarn_ext_factor
    return dataclasses.replace(scaling, extrapolation=share) if share else scaling


def _trained(model: ModelConfig) -> float:
    """Tokens that the model was trained with before its file stretched them."""
    scaling = model.rope_scaling
    return scaling.original_context if scaling.kind == "yarn" else model.context_length / scaling.factor


def _reach(model: ModelConfig, scaling: RopeScaling, base: float) -> int:
    """Tokens that positions serve when the model turns at `base` with `scaling`.

    The slowest of n pairs turns by base^-((n - 1) / n) a position.
    """
    trained = scaling.original_context if scaling.kind == "yarn" else _trained(model)
    slower = (base / model.rope_freq_base) ** (1 - 2 / model.rope_dimension_count)
    return round(trained * scaling.factor * slower)
