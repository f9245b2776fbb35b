"""The kinds of sampling parameters, and what a row of their table says. Imports neither numpy nor jax.

`model.sampling.config.SamplingConfig` is the table: each of its fields is declared by `row`. The checks, the class's
documentation, the flags of the command line and the dtypes of `model.sampling.chain.SlotSampling` are read from there.
"""

import dataclasses
import math
import numbers
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar, cast

from packlight.common.errors import ConfigError

FLOAT32_MAX = float.fromhex("0x1.fffffep127")
INT32_MAX = 2**31 - 1
UINT32_MAX = 2**32 - 1
Default = TypeVar("Default")


@dataclasses.dataclass(frozen=True)
class Real:
    """A number that float32 holds."""

    low: float
    high: float = FLOAT32_MAX

    def check(self, name: str, value: Any) -> float:
        """The number as a float. Raises ConfigError naming the parameter and the value."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ConfigError(f"{name} must be a number, not {reprlib.repr(value)} ({type(value).__name__})")
        try:
            number = float(value)
        except OverflowError:  # an int beyond float64
            number = math.inf
        if not (self.low <= number <= self.high):  # also true of NaN
            raise ConfigError(f"{name} must be {self._limit()}, not {reprlib.repr(value)}")
        return number + 0.0  # -0.0 becomes 0.0

    def _limit(self) -> str:
        if self.high < FLOAT32_MAX:
            return f"between {self.low:g} and {self.high:g}"
        if self.low > 0:
            return "finite in float32 and positive"
        if self.low < -1:
            return "finite in float32"
        return "finite in float32 and " + ("at least -1" if self.low else "not negative")


@dataclasses.dataclass(frozen=True)
class Integer:
    """A whole number."""

    low: int
    high: int = INT32_MAX
    optional: bool = False  # None is a value too

    def check(self, name: str, value: Any) -> int | None:
        """The number as an int. Raises ConfigError naming the parameter and the value."""
        if value is None and self.optional:
            return None
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise ConfigError(f"{name} must be an integer, not {reprlib.repr(value)} ({type(value).__name__})")
        number = int(value)
        if not self.low <= number <= self.high:
            raise ConfigError(f"{name} must be between {self.low} and {self.high}, not {reprlib.repr(value)}")
        return number


@dataclasses.dataclass(frozen=True)
class Switch:
    """True or false."""

    def check(self, name: str, value: Any) -> bool:
        """The value itself. Raises ConfigError for what is no bool."""
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be true or false, not {reprlib.repr(value)}")
        return value


@dataclasses.dataclass(frozen=True)
class Text:
    """A text, or None."""

    from_file: bool = False  # at the command line, "@FILE" stands for a file's text

    def check(self, name: str, value: Any) -> str | None:
        """The text itself. Raises ConfigError for other types and for a text without UTF-8."""
        return None if value is None else _text(name, value)


@dataclasses.dataclass(frozen=True)
class Schema:
    """A JSON schema as text or as a mapping, or None."""

    from_file: bool = True  # as Text has it

    def check(self, name: str, value: Any) -> str | None:
        """The schema as text. Raises ConfigError for what is neither a text nor JSON."""
        if isinstance(value, Mapping):
            import json

            try:
                return json.dumps(value)
            except (TypeError, ValueError, RecursionError) as error:
                raise ConfigError(f"{name} is not JSON: {error}") from None
        return None if value is None else _text(name, value)


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts, none of them empty."""

    longest: int | None = None  # bytes of each at most
    most: int | None = None  # so many at most

    def check(self, name: str, value: Any) -> tuple[str, ...]:
        """The texts as a tuple. Raises ConfigError for other types, an empty text, one without UTF-8, too many and too
        long ones.
        """
        if not isinstance(value, (tuple, list)):
            raise ConfigError(f"{name} must be a list of strings, not {reprlib.repr(value)} ({type(value).__name__})")
        for text in value:
            if not isinstance(text, str):
                raise ConfigError(f"{name} must hold strings, not {reprlib.repr(text)} ({type(text).__name__})")
            if not text:
                raise ConfigError(f"{name} must not hold an empty string: ''")
            if _unsound(text):
                raise ConfigError(f"{name} must hold valid Unicode, not {reprlib.repr(text)}")
            if self.longest is not None and len(text.encode()) > self.longest:
                raise ConfigError(f"{name} must hold texts of at most {self.longest} bytes, not {reprlib.repr(text)}")
        if self.most is not None and len(value) > self.most:
            raise ConfigError(f"{name} has {len(value)} texts; at most {self.most}")
        return tuple(value)


@dataclasses.dataclass(frozen=True)
class Biases:
    """Numbers of token ids, as a mapping or as pairs."""

    most: int  # so many pairs at most

    def check(self, name: str, value: Any) -> tuple[tuple[int, float], ...]:
        """Pairs of token id and bias, by id. Raises ConfigError for other types, bad numbers and too many."""
        pairs = value.items() if isinstance(value, Mapping) else value
        if not isinstance(pairs, (tuple, list, type({}.items()))):
            raise ConfigError(f"{name} must map token ids to numbers, not {reprlib.repr(value)}")
        biases: dict[int, float] = {}
        for pair in pairs:
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ConfigError(f"{name} must map token ids to numbers, not {reprlib.repr(value)}")
            token, bias = pair
            known = Integer(0).check(f"{name}'s token id", token)
            assert known is not None
            biases[known] = -math.inf if bias == -math.inf else Real(-FLOAT32_MAX).check(name, bias)
        if len(biases) > self.most:
            raise ConfigError(f"{name} has {len(biases)} tokens; at most {self.most}")
        return tuple(sorted(biases.items()))


Kind = Real | Integer | Switch | Text | Schema | Texts | Biases


class Parameter(NamedTuple):
    """All that is known of one sampling parameter."""

    name: str
    default: Any
    kind: Kind  # what values it takes, with their range
    help: str  # what it does, in one line: the help of its flag and the field's documentation
    more: str  # what the field's documentation adds
    dtype: str  # of its array in SlotSampling; "" for a parameter that no executable takes
    absent: int  # what that array holds where the value is None


def row(default: Default, kind: Kind, help: str, more: str = "", dtype: str = "", absent: int = 0) -> Default:  # noqa: A002
    """Declares a field of a dataclass as a row of the table; the arguments are `Parameter`'s fields."""
    said = {"kind": kind, "help": help, "more": more, "dtype": dtype, "absent": absent}
    return cast(Default, dataclasses.field(default=default, metadata=said))


def rows(table: type) -> tuple[Parameter, ...]:
    """The rows that a dataclass declares, in order."""
    return tuple(Parameter(field.name, field.default, **field.metadata) for field in dataclasses.fields(table))


def documentation(parameters: tuple[Parameter, ...]) -> str:
    """A line for each parameter, and one for what its row adds."""
    width = max(len(parameter.name) for parameter in parameters)
    lines = []
    for name, _, _, text, more, _, _ in parameters:
        lines += [f"    {name:{width}}  {text}", *([f"    {'':{width}}  {more}"] if more else [])]
    return "\n".join(lines)


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
