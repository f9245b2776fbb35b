"""`RopeChanges`: what a caller wants otherwise than a file says of its rotation, by llama.cpp's names.

Imports no numpy, as flags are made of it. `model.spec.stretching` makes a model of them.
"""

import dataclasses
import math
import numbers
import struct
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypedDict

from packlight.common.errors import Argument, ConfigError
from packlight.common.text import shown

RopeKind = Literal["none", "linear", "yarn"]
KINDS: tuple[RopeKind, ...] = ("none", "linear", "yarn")


class Row(NamedTuple):
    """What is known of one argument."""

    kind: type  # str, float or int
    help: str  # what it means, in one line
    low: float = 0
    high: float = 0


# Source: llama.cpp's common/arg.cpp. The bounds are within those of a file's keys.
ROPE: Mapping[str, Row] = {
    "rope_scaling": Row(str, "none, linear or yarn: how positions are stretched (default: the file's, or linear)"),
    "rope_scale": Row(float, "the context grows by this factor (default: the file's)", 1e-3, 1e5),
    "rope_freq_base": Row(float, "base of the rotations (default: the file's)", 1.001, 1e12),
    "rope_freq_scale": Row(float, "1 / rope_scale, in its place", 1e-5, 1e3),
    "yarn_orig_ctx": Row(int, "tokens that the model was first trained with (default: the file's)", 1, 2**31 - 1),
    "yarn_ext_factor": Row(float, "share of YaRN's correction; 0 stretches all pairs alike (default: 1)", 0, 1),
    "yarn_attn_factor": Row(float, "queries and keys are multiplied by it (default: 1)", 1e-3, 1e3),
    "yarn_beta_slow": Row(float, "pairs that turn less often are stretched in full (default: the file's)", 1e-3, 1e5),
    "yarn_beta_fast": Row(float, "pairs that turn more often stay (default: the file's)", 1e-3, 1e5),
}


class Rope(TypedDict, total=False):
    """ROPE as keyword arguments; any may be left out, and None leaves it to the file."""

    rope_scaling: RopeKind | None
    rope_scale: float | None
    rope_freq_base: float | None
    rope_freq_scale: float | None
    yarn_orig_ctx: int | None
    yarn_ext_factor: float | None
    yarn_attn_factor: float | None
    yarn_beta_slow: float | None
    yarn_beta_fast: float | None


@dataclasses.dataclass(frozen=True)
class RopeChanges:
    """The values of ROPE that a caller gives; None leaves each to the file. Numbers are float32's, as a file's are."""

    rope_scaling: RopeKind | None = None
    rope_scale: float | None = None
    rope_freq_base: float | None = None
    rope_freq_scale: float | None = None
    yarn_orig_ctx: int | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_slow: float | None = None
    yarn_beta_fast: float | None = None

    def __post_init__(self):
        """Raises ConfigError for a value that suits no model, and for two that contradict each other."""
        for name, row in ROPE.items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _checked(name, row, value))
        if self.rope_scale is not None and self.rope_freq_scale is not None:
            raise ConfigError(self.argument("rope_scale"), " or ", self.argument("rope_freq_scale"), ", not both")
        if self.rope_scaling == "none" and self.factor is not None:
            raise ConfigError(self.factors[0], ": nothing is scaled with ", self.argument("rope_scaling"))

    @property
    def given(self) -> tuple[Argument, ...]:
        """The arguments that have a value."""
        return tuple(self.argument(name) for name in ROPE if getattr(self, name) is not None)

    @property
    def factors(self) -> tuple[Argument, ...]:
        """Those of the arguments that say how much is stretched."""
        return tuple(each for each in self.given if each.name in ("rope_scale", "rope_freq_scale"))

    @property
    def yarn(self) -> tuple[Argument, ...]:
        """Those of the arguments that are YaRN's alone."""
        return tuple(each for each in self.given if each.name.startswith("yarn_"))

    @property
    def factor(self) -> float | None:
        """What positions are divided by."""
        return self.rope_scale if self.rope_freq_scale is None else _float32(1 / self.rope_freq_scale)

    def argument(self, name: str) -> Argument:
        value = getattr(self, name)
        return Argument(name, f"{value:g}" if isinstance(value, float) else value)


def _checked(name: str, row: Row, value: Any) -> Any:
    """The value as the row's kind of it. Raises ConfigError naming it."""
    said = Argument(name, shown(str(value)))
    if row.kind is str:
        if value not in KINDS:
            raise ConfigError(said, f": it is one of {', '.join(KINDS)}")
        return value
    kind, word = (numbers.Integral, "an integer") if row.kind is int else (numbers.Real, "a number")
    number: Any = value if isinstance(value, kind) and not isinstance(value, bool) else math.nan
    if not row.low <= number <= row.high:  # NaN is not
        raise ConfigError(said, f": it is {word} from {row.low:.10g} to {row.high:.10g}")
    return int(number) if row.kind is int else _float32(float(number))


def _float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]
