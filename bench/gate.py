"""The gate: is this run slower than a stored one by more than the noise of both? Imports no jax.

What is compared is never a bare rate, which drifts with the machine: it is the ratio to the peer that ran in turn with
us where both runs have one, else the rate over what the machine could do in the same run (read bandwidth for
generation, matrix product rate for prompts).
"""

import dataclasses
import math
from typing import Any

from packlight.bench.options import read_records
from packlight.common.errors import ConfigError

FLOOR = 0.10  # what two runs minutes apart on a shared machine differ by with nothing changed
SIGMAS = 3.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    passed: bool
    text: str


def baseline(path: str, sha256: str) -> dict[str, Any]:
    """The newest record of the file with that digest in `path`. Raises ConfigError when there is none."""
    stored = [old for old in read_records(path, "gate") if old.get("sha256") == sha256]
    if not stored:
        raise ConfigError(f"--gate={path}: no record of this file (sha256 {sha256[:12]}...)")
    return stored[-1]


def judge(record: dict[str, Any], path: str) -> Verdict:
    """Compares with `baseline`. Raises ConfigError when they have no test in common, or no figure to compare.

    A test fails when it is slower by more than FLOOR or SIGMAS standard errors of the two medians, whichever is more.
    """
    old = baseline(path, record["sha256"])
    by_peer = bool(record["ratios"]) and bool(old["ratios"])
    now = figures(record, by_peer)
    try:
        before, commit = figures(old, by_peer), old["machine"]["commit"]
    except (KeyError, TypeError, AttributeError, ZeroDivisionError, ValueError):
        raise ConfigError(f"--gate={path}: not a record of packlight bench") from None
    common = [test for test in now if test in before]
    if not common:
        raise ConfigError(f"--gate={path}: its tests are {', '.join(before)}; this run's are {', '.join(now)}")
    basis = f"ratio to {record['peer']['name']}" if by_peer else "rate over the machine's measured limit"
    lines, passed = [f"gate against {commit or path}, by {basis}:"], True
    for test in common:
        (value, error), (reference, reference_error) = now[test], before[test]
        change, allowed = value / reference - 1, tolerance(error, reference_error)
        slower = not change >= -allowed  # also what is not a number
        passed &= not slower
        lines.append(f"{test} {change:+.1%}, {allowed:.1%} allowed{', SLOWER' if slower else ''};")
    if left := [test for test in before if test not in now]:
        lines.append(f"not run: {', '.join(left)};")
    return Verdict(passed, " ".join([*lines, "passed" if passed else "failed"]))


def tolerance(*errors: float) -> float:
    """The slowdown allowed between figures with these relative standard errors."""
    return max(FLOOR, SIGMAS * math.hypot(*errors))


def figures(record: dict[str, Any], by_peer: bool) -> dict[str, tuple[float, float]]:
    """Test -> (the figure compared, its relative standard error)."""
    if by_peer:
        details = record["ratio_details"]
        return {test: (d["median"], _error(d["sd"], d["median"], d["pairs"])) for test, d in details.items()}
    limits, found = record["limits"], {}
    for row in record["results"]:
        limit = limits["gemm_gflop_s" if row["test"].startswith("pp") else "read_gb_s"]
        found[row["test"]] = (row["median"] / limit, _error(row["sd"], row["median"], row["reps"]))
    return found


def _error(sd: float, median: float, count: int) -> float:
    """The median's standard error over the median: that of the mean, times sqrt(pi / 2).

    Raises ValueError for a median that no measurement gives.
    """
    if not 0 < median < math.inf:
        raise ValueError(f"a median of {median}")
    return math.sqrt(math.pi / 2) * sd / median / math.sqrt(count)
