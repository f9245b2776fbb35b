"""What the user asks of the sampler. Knows ranges and defaults; knows no arrays, no text model, and imports no jax."""

import dataclasses
import math
import numbers
import reprlib
import secrets
from typing import Any

from quant.errors import ConfigError

FLOAT32_MAX = float.fromhex("0x1.fffffep127")
INT32_MAX = 2**31 - 1
UINT32_MAX = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How one request picks its tokens: top-k, then top-p, then min-p, then temperature, then one draw.

    temperature  >= 0; 0 is greedy (a value below float32's smallest normal, 1.2e-38, is too)
    top_k        keep the k most probable tokens; 0 disables
    top_p        keep the smallest set of most probable tokens whose probabilities reach p; 1 disables, 0 keeps one
    min_p        keep tokens at least min_p times as probable as the best one; 0 disables, 1 keeps the best
    seed         uint32; None asks for a random one, which `with_seed` draws
    max_tokens   None is "until the end token or the context's end"; 0 gives empty text
    stop         strings that end the text; a list becomes a tuple

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

    def __post_init__(self) -> None:
        checked = {
            "temperature": _real("temperature", self.temperature, FLOAT32_MAX),
            "top_k": _integer("top_k", self.top_k, INT32_MAX),
            "top_p": _real("top_p", self.top_p, 1.0),
            "min_p": _real("min_p", self.min_p, 1.0),
            "seed": None if self.seed is None else _integer("seed", self.seed, UINT32_MAX),
            "max_tokens": None if self.max_tokens is None else _integer("max_tokens", self.max_tokens, INT32_MAX),
            "stop": _stop(self.stop),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def with_seed(self) -> "SamplingConfig":
        """The same request with a seed: its own, or one from the operating system's randomness where it is None."""
        return self if self.seed is not None else dataclasses.replace(self, seed=secrets.randbits(32))


def _real(name: str, value: Any, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigError(f"{name} must be a number, not {reprlib.repr(value)} ({type(value).__name__})")
    try:
        number = float(value)
    except OverflowError:  # an int beyond float64
        number = math.inf
    if not (0 <= number <= high):  # also true of NaN
        limit = "finite in float32 and not negative" if high == FLOAT32_MAX else f"between 0 and {high:g}"
        raise ConfigError(f"{name} must be {limit}, not {reprlib.repr(value)}")
    return abs(number)  # -0.0 becomes 0.0


def _integer(name: str, value: Any, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ConfigError(f"{name} must be an integer, not {reprlib.repr(value)} ({type(value).__name__})")
    number = int(value)
    if not 0 <= number <= high:
        raise ConfigError(f"{name} must be between 0 and {high}, not {reprlib.repr(value)}")
    return number


def _stop(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (tuple, list)):
        raise ConfigError(f"stop must be a list of strings, not {reprlib.repr(value)} ({type(value).__name__})")
    for text in value:
        if not isinstance(text, str):
            raise ConfigError(f"stop must hold strings, not {reprlib.repr(text)} ({type(text).__name__})")
        if not text:
            raise ConfigError("stop must not hold an empty string: ''")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"stop must hold valid Unicode, not {reprlib.repr(text)}") from None
    return tuple(value)
