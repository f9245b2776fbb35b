"""`Layer`: which parts every layer of a model is made of, and how layers repeat. Imports no jax.

One loop over the layers of a period serves a model of one kind, of kinds that alternate, and of long runs. What is
inside a period is traced once for each run of equal layers, so that the size of a program does not grow with the depth.
"""

import collections
import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from packlight.model.spec.parts import Mixer, Part
from packlight.model.spec.parts.altup import AltUpPart, LaurelPart
from packlight.model.spec.parts.perlayer import PerLayerPart

LAYER = "layer"  # the name of what every layer has, whatever it is made of: norms
MAX_TRACED = 32  # layers that a program may hold one after the other: each takes a tenth of a second or more to compile


@dataclasses.dataclass(frozen=True)
class Layer:
    """What one layer is made of."""

    mixers: tuple[Mixer, ...]  # side by side: what they give is added
    ffn: Part | None  # None: there is none
    bare: bool = False  # its mixers read no norm
    per_layer: PerLayerPart | None = None  # what it adds of a second embedding, behind all else
    laurel: LaurelPart | None = None  # beside attention
    altup: AltUpPart | None = None  # around all else but the second embedding, where there are several streams

    @property
    def parts(self) -> tuple[Part, ...]:
        others = (self.ffn, self.per_layer, self.laurel, self.altup)
        return (*self.mixers, *(part for part in others if part is not None))

    @property
    def names(self) -> tuple[str, ...]:
        """Under which its weights are found: of its parts, and of what every layer has."""
        return (LAYER, *(part.name for part in self.parts))

    def __str__(self) -> str:
        return " + ".join(part.name for part in self.parts) + (" without the first norm" if self.bare else "")


class Run(NamedTuple):
    """Equal layers in a row."""

    length: int
    layer: Layer


class Period(NamedTuple):
    """Runs that follow each other `repeats` times."""

    repeats: int
    runs: tuple[Run, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many layers of one repetition have each of `Layer.names`."""
        counts: collections.Counter[str] = collections.Counter()
        for length, layer in self.runs:
            counts.update(dict.fromkeys(layer.names, length))
        return dict(counts)

    def __str__(self) -> str:
        runs = [f"{run.length} ({run.layer})" if run.length > 1 else f"({run.layer})" for run in self.runs]
        text = ", ".join(runs)
        return text if self.repeats == 1 else f"{self.repeats} x {text if len(runs) == 1 else f'[{text}]'}"


def periods(layers: Sequence[Layer]) -> tuple[Period, ...]:
    """The layers as periods, such that as few runs as can be are traced; a period has MAX_TRACED runs at most."""
    runs = [Run(len(list(equal)), layer) for layer, equal in itertools.groupby(layers)]
    number = {run: at for at, run in enumerate(runs)}
    numbers = [number[run] for run in runs]
    best: list[tuple[int, int, int]] = [(0, 0, 0)] * (len(runs) + 1)  # at a run: traced from there on, period, repeats
    for at in range(len(runs) - 1, -1, -1):
        ways = []
        for length in range(1, min(MAX_TRACED, len(runs) - at) + 1):
            period, repeats = numbers[at : at + length], 1
            while numbers[at + repeats * length : at + (repeats + 1) * length] == period:
                repeats += 1
            ways.append((length + best[at + repeats * length][0], length, repeats))
        best[at] = min(ways)
    found, at = [], 0
    while at < len(runs):
        _, length, repeats = best[at]
        found.append(Period(repeats, tuple(runs[at : at + length])))
        at += length * repeats
    return tuple(found)


def in_words(layers: Sequence[Layer]) -> str:
    """How the layers repeat."""
    return ", ".join(map(str, periods(layers)))


def traced(layers: Sequence[Layer]) -> int:
    """How many layers a step is traced for."""
    return sum(len(period.runs) for period in periods(layers))
