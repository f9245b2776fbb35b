"""The keyword arguments of loading and of generation as type checkers and editors see them. Imports no numpy."""

import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from packlight.common.arguments import Call, suggesting
from packlight.model.sampling.config import PARAMETERS
from packlight.model.sampling.parameters import documentation
from packlight.model.spec.rope_changes import ROPE, Rope


class Sampling(TypedDict, total=False):
    """The sampling parameters, which `generate`, `stream` and `chat` take as keyword arguments; any may be left out.

    `SamplingConfig` has their defaults and checks them.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    max_tokens: int | None
    stop: list[str] | tuple[str, ...]
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]]
    ignore_eos: bool
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    repeat_last_n: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: list[str] | tuple[str, ...]
    top_n_sigma: float
    typical_p: float
    xtc_probability: float
    xtc_threshold: float
    dynatemp_range: float
    dynatemp_exponent: float
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    logprobs: int | None
    prompt_logprobs: int | None
    json_schema: str | Mapping[str, Any] | None
    regex: str | None
    grammar: str | None
    prediction: str | None


Sampling.__doc__ = f"{Sampling.__doc__}\n{documentation(PARAMETERS)}\n"


def sampled(call: Call) -> Call:
    """`suggesting` for a function that takes `**sampling: Unpack[Sampling]`. Its signature, as help and notebooks show
    it, has each parameter with type and default.
    """
    return _spread(call, Sampling, {row.name: row.default for row in PARAMETERS})


def rotated(call: Call) -> Call:
    """The same for a function that takes `**rope: Unpack[Rope]`; its documentation ends with their meanings."""
    lines = "".join(f"\n    {name}: {row.help}" for name, row in ROPE.items())
    said = "By llama.cpp's names, in place of what the file says of positions; more context than it states needs them:"
    call.__doc__ = f"{inspect.cleandoc(call.__doc__ or '')}\n\n{said}{lines}"
    return _spread(call, Rope, dict.fromkeys(ROPE))


def _spread(call: Call, named: type, defaults: Mapping[str, Any]) -> Call:
    """`suggesting` for a function whose `**` arguments are those of a typed dict."""
    signature, types = inspect.signature(call), typing.get_type_hints(named)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    spread = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[name])
        for name, default in defaults.items()
    ]
    call.__signature__ = signature.replace(parameters=[*own, *spread])  # pyright: ignore[reportFunctionMemberAccess]
    return suggesting(call)
