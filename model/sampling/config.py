"""What the user asks of the sampler. Knows ranges and defaults; knows no arrays, no text model, and imports no jax."""

import dataclasses
import math
import numbers
import reprlib
import secrets
from collections.abc import Mapping
from typing import Any

from packlight.common.errors import ConfigError

FLOAT32_MAX = float.fromhex("0x1.fffffep127")
INT32_MAX = 2**31 - 1
UINT32_MAX = 2**32 - 1
MOST_LOGPROBS = 20  # as the OpenAI API and vLLM have it
MOST_BIASES = 1024


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How one request picks its tokens: a chain in llama.cpp's order with its defaults, each step as named here.

    logit_bias          token id -> added to its logit; -inf forbids it. At most 1024
    ignore_eos          tokens that end a generation are forbidden
    repeat_penalty      logits of recent tokens are divided by it (multiplied if negative); 1 disables
    frequency_penalty   subtracted from a recent token's logit as often as it occurs; 0 disables
    presence_penalty    subtracted from a recent token's logit once; 0 disables
    repeat_last_n       how many tokens, prompt included, are recent; -1 is all, 0 disables these penalties
    dry_multiplier      DRY: multiplier * base^(n - allowed_length) is subtracted from the logit of a token that would
                        extend a repeated sequence of n >= allowed_length tokens; 0 disables
    dry_base, dry_allowed_length
    dry_penalty_last_n  tokens to look for repetitions in; -1 is all, 0 disables
    dry_sequence_breakers  texts over which no repetition reaches
    top_n_sigma         keep logits within n standard deviations of the best; <= 0 disables
    top_k               keep the k most probable tokens; 0 disables
    typical_p           keep the tokens whose surprise is nearest the expected one, until they hold p; 1 disables
    top_p               keep the fewest most probable tokens whose probabilities reach p; 1 disables, 0 keeps one
    min_p               keep tokens at least min_p times as probable as the best one; 0 disables, 1 keeps the best
    xtc_probability     how often to drop all tokens of at least xtc_threshold but the least probable; 0 disables
    xtc_threshold       over 0.5 disables
    temperature         >= 0; 0 is greedy (a value below float32's smallest normal, 1.2e-38, is too)
    dynatemp_range      the temperature is between temperature -/+ this, by the entropy left; 0 disables
    dynatemp_exponent   how entropy maps to it
    mirostat            1 or 2: logit bias and temperature, then Mirostat in place of every other step; 0 disables
    mirostat_tau, mirostat_eta   its target surprise in bits, its learning rate
    seed                uint32; None asks for a random one, which `with_seed` draws
    max_tokens          None is "until the end token or the context's end"; 0 gives empty text
    stop                strings that end the text; a list becomes a tuple
    logprobs            None, or how many of the most probable tokens to report beside each chosen one, 0 to 20
    json_schema, regex, grammar   what the text must be (one of them): a JSON schema (text or mapping), a regular
                        expression, a grammar (llama.cpp's GBNF, or llguidance's Lark). Needs the extra "grammar"

    Numbers of other types (numpy's) become Python's. Raises ConfigError naming the field and the value: wrong type
    (bool and str are no numbers, one str is no list of stop strings), NaN, infinite, or out of range.
    Source: llama.cpp `common_params_sampling` for defaults and for what disables a step.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    top_n_sigma: float = -1.0
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logprobs: int | None = None
    json_schema: str | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {name: _real(name, getattr(self, name), *limits) for name, limits in REALS.items()}
        checked |= {name: _integer(name, getattr(self, name), *limits) for name, limits in INTEGERS.items()}
        for name in ("stop", "dry_sequence_breakers"):
            checked[name] = _texts(name, getattr(self, name))
        for name in ("regex", "grammar"):
            checked[name] = None if getattr(self, name) is None else _text(name, getattr(self, name))
        checked["json_schema"] = _schema(self.json_schema)
        checked["logit_bias"] = _biases(self.logit_bias)
        if not isinstance(self.ignore_eos, bool):
            raise ConfigError(f"ignore_eos must be true or false, not {reprlib.repr(self.ignore_eos)}")
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if sum(value is not None for value in (self.json_schema, self.regex, self.grammar)) > 1:
            raise ConfigError("json_schema, regex and grammar exclude each other: a text must be one of them")

    @property
    def constrained(self) -> bool:
        """Whether the text must match something."""
        return (self.json_schema, self.regex, self.grammar) != (None, None, None)

    @property
    def penalizes(self) -> bool:
        """Whether tokens seen so far change the logits."""
        repeats = self.repeat_penalty != 1 or self.frequency_penalty or self.presence_penalty
        return not self.mirostat and bool((repeats and self.repeat_last_n) or self.dries)

    @property
    def dries(self) -> bool:
        """Whether DRY is on. Source: llama.cpp `llama_sampler_init_dry`."""
        return not self.mirostat and bool(self.dry_multiplier and self.dry_base >= 1 and self.dry_penalty_last_n)

    def with_seed(self) -> "SamplingConfig":
        """The same request with a seed: its own, or one from the operating system's randomness where it is None."""
        return self if self.seed is not None else dataclasses.replace(self, seed=secrets.randbits(32))


# Field -> smallest and largest value; None among the integers where the default is None, which stays.
REALS = {
    "temperature": (0.0, FLOAT32_MAX),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (2.0**-126, FLOAT32_MAX),
    "frequency_penalty": (-FLOAT32_MAX, FLOAT32_MAX),
    "presence_penalty": (-FLOAT32_MAX, FLOAT32_MAX),
    "dry_multiplier": (0.0, FLOAT32_MAX),
    "dry_base": (0.0, FLOAT32_MAX),
    "top_n_sigma": (-1.0, FLOAT32_MAX),
    "typical_p": (0.0, 1.0),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "dynatemp_range": (0.0, FLOAT32_MAX),
    "dynatemp_exponent": (0.0, FLOAT32_MAX),
    "mirostat_tau": (0.0, FLOAT32_MAX),
    "mirostat_eta": (0.0, FLOAT32_MAX),
}
INTEGERS = {
    "top_k": (0, INT32_MAX),
    "seed": (0, UINT32_MAX),
    "max_tokens": (0, INT32_MAX),
    "repeat_last_n": (-1, INT32_MAX),
    "dry_allowed_length": (1, INT32_MAX),
    "dry_penalty_last_n": (-1, INT32_MAX),
    "mirostat": (0, 2),
    "logprobs": (0, MOST_LOGPROBS),
}
OPTIONAL = ("seed", "max_tokens", "logprobs")


def _real(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigError(f"{name} must be a number, not {reprlib.repr(value)} ({type(value).__name__})")
    try:
        number = float(value)
    except OverflowError:  # an int beyond float64
        number = math.inf
    if not (low <= number <= high):  # also true of NaN
        if high < FLOAT32_MAX:
            limit = f"between {low:g} and {high:g}"
        elif low > 0:
            limit = "finite in float32 and positive"
        else:
            limit = "finite in float32" + ("" if low < -1 else " and at least -1" if low else " and not negative")
        raise ConfigError(f"{name} must be {limit}, not {reprlib.repr(value)}")
    return number + 0.0  # -0.0 becomes 0.0


def _integer(name: str, value: Any, low: int, high: int) -> int | None:
    if value is None and name in OPTIONAL:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ConfigError(f"{name} must be an integer, not {reprlib.repr(value)} ({type(value).__name__})")
    number = int(value)
    if not low <= number <= high:
        raise ConfigError(f"{name} must be between {low} and {high}, not {reprlib.repr(value)}")
    return number


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (tuple, list)):
        raise ConfigError(f"{name} must be a list of strings, not {reprlib.repr(value)} ({type(value).__name__})")
    for text in value:
        if not isinstance(text, str):
            raise ConfigError(f"{name} must hold strings, not {reprlib.repr(text)} ({type(text).__name__})")
        if not text:
            raise ConfigError(f"{name} must not hold an empty string: ''")
        if _unsound(text):
            raise ConfigError(f"{name} must hold valid Unicode, not {reprlib.repr(text)}")
    return tuple(value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or _unsound(value):
        raise ConfigError(f"{name} must be a text, not {reprlib.repr(value)} ({type(value).__name__})")
    return value


def _unsound(text: str) -> bool:
    """Whether a text has a surrogate, which has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _schema(value: Any) -> str | None:
    """A JSON schema as text; a mapping is written as JSON."""
    if isinstance(value, Mapping):
        import json

        try:
            return json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"json_schema is not JSON: {error}") from None
    return None if value is None else _text("json_schema", value)


def _biases(value: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of token id and bias, by id, from a mapping or pairs."""
    pairs = value.items() if isinstance(value, Mapping) else value
    if not isinstance(pairs, (tuple, list, type({}.items()))):
        raise ConfigError(f"logit_bias must map token ids to numbers, not {reprlib.repr(value)}")
    biases: dict[int, float] = {}
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ConfigError(f"logit_bias must map token ids to numbers, not {reprlib.repr(value)}")
        token, bias = pair
        known = _integer("logit_bias's token id", token, 0, INT32_MAX)
        assert known is not None
        biases[known] = -math.inf if bias == -math.inf else _real("logit_bias", bias, -FLOAT32_MAX, FLOAT32_MAX)
    if len(biases) > MOST_BIASES:
        raise ConfigError(f"logit_bias has {len(biases)} tokens; at most {MOST_BIASES}")
    return tuple(sorted(biases.items()))
