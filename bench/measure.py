"""Interleaved repetitions and what is made of them: rates, spread, ratios of pairs. Imports no jax.

All programs are alive at once and take turns, A B A B, so that a machine whose speed drifts slows them alike; a ratio
is the median of the ratios of neighbours in time.
"""

import collections
import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from packlight.bench.cases import Case, Sample
from packlight.bench.machine import cpu_seconds

if TYPE_CHECKING:
    from packlight.bench.programs import Program


class Limits(Protocol):
    """What knows the best that the machine can do now; see `bench/limits.py` and `bench/accelerator.py`."""

    def ask(self, **request: Any) -> dict[str, Any]: ...


@dataclasses.dataclass
class Idle:
    """Processor seconds that a program used while it should have waited, and how long it waited."""

    busy: float = 0.0
    waited: float = 0.0

    @property
    def share(self) -> float:
        """Of one core."""
        return self.busy / self.waited if self.waited else 0.0


@dataclasses.dataclass
class Runs:
    """What was measured.

    samples: case name -> program name -> its repetitions, the i-th of each next to each other in time. idle: what
    programs used while others ran. limits: the best the machine did between the repetitions.
    """

    samples: dict[str, dict[str, list[Sample]]] = dataclasses.field(default_factory=dict)
    idle: dict[str, Idle] = dataclasses.field(default_factory=lambda: collections.defaultdict(Idle))
    limits: dict[str, Any] = dataclasses.field(default_factory=dict)

    def take(self, case: Case, programs: "Sequence[Program]", reps: int, machine: Limits) -> None:
        """Measures a case: one warm-up of each program that can run it, then `reps` rounds of all of them.

        machine: whose best answers become `limits`.
        """
        able = [program for program in programs if program.can(case)]
        for program in able:
            program.start(case)
            program.run()
        samples = self.samples.setdefault(case.name, {program.name: [] for program in able})
        for _ in range(reps):
            for program in able:
                samples[program.name].append(self._watched(program, able))
            measured = machine.ask(do="measure")
            self.limits = {key: max(value, self.limits.get(key, value)) for key, value in measured.items()}
        for program in able:
            program.stop()

    def _watched(self, program: "Program", programs: "Sequence[Program]") -> Sample:
        others = {p.name: p.pid for p in programs if p.pid not in (0, program.pid)}
        before = {name: cpu_seconds(pid) for name, pid in others.items()}
        began = time.perf_counter()
        sample = program.run()
        waited = time.perf_counter() - began
        for name, pid in others.items():
            self.idle[name].busy += cpu_seconds(pid) - before[name]
            self.idle[name].waited += waited
        return sample


def rates(case: Case, samples: Sequence[Sample]) -> list[float]:
    """Tokens per second of each repetition, over all sequences."""
    return [case.batch * case.tokens / sample.seconds for sample in samples]


def row(case: Case, samples: Sequence[Sample], moved: float, flops: float, limits: dict[str, Any]) -> dict[str, Any]:
    """A result. moved, flops: bytes and operations of one repetition; limits as `bench/limits.py` prints them.

    tok_s, sd: mean and standard deviation; gb_s and gflop_s at the median; share_of_limit of the read bandwidth.
    """
    tok_s = rates(case, samples)
    seconds = statistics.median(sample.seconds for sample in samples)
    gb_s, gflop_s = moved / seconds / 1e9, flops / seconds / 1e9
    result = {
        "test": case.name,
        "tok_s": statistics.mean(tok_s),
        "sd": deviation(tok_s),
        "median": statistics.median(tok_s),
        "spread": [min(tok_s), max(tok_s)],
        "reps": len(tok_s),
        "gb_s": gb_s,
        "share_of_limit": gb_s / limits["read_gb_s"],
        "gflop_s": gflop_s,
        "share_of_gemm": gflop_s / limits["gemm_gflop_s"],
    }
    gaps = sorted(1000 * gap for sample in samples for gap in sample.gaps)
    if gaps:
        result |= {"itl_p50_ms": statistics.median(gaps), "itl_p95_ms": gaps[int(0.95 * (len(gaps) - 1))]}
    if case.phase == "pp":
        result["first_token_s"] = seconds
    return result


def ratio(case: Case, ours: Sequence[Sample], theirs: Sequence[Sample]) -> dict[str, Any]:
    """Our rate over theirs, pair by pair: the median, the smallest and largest, the deviation, the pairs."""
    pairs = [a / b for a, b in zip(rates(case, ours), rates(case, theirs), strict=True)]
    return {
        "median": statistics.median(pairs),
        "spread": [min(pairs), max(pairs)],
        "sd": deviation(pairs),
        "pairs": len(pairs),
    }


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
