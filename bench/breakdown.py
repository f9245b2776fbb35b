"""Where a decode step's time goes, from a profile.

    python -m packlight.bench.breakdown --model=FILE [--tokens=64] [--depth=0]

Every operation that XLA ran counts with its own time (its span less what ran inside it) for one of PARTS, told apart by
the program's text. Of native kernels only: in XLA's a product has no operation of its own. The table goes to stdout,
the record is added to `bench/results/breakdown.json`.
"""

import argparse
import collections
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

from packlight.bench.cases import Case
from packlight.bench.command import append
from packlight.bench.machine import file_facts, machine
from packlight.bench.render import RESULTS
from packlight.common.errors import ConfigError, PacklightError

PRODUCTS = ("packlight_matmul", "packlight_experts")
MIXING = ("packlight_attention", "packlight_delta", "packlight_mamba2")  # attention, and what layers have in its place
PARTS = ("matrix products", "attention", "rest of the layers", "rest of head and sampling")
COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.-]+) .*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.-]+) = ")
CALLED = re.compile(r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%([\w.-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def parts_of(text: str) -> dict[str, str]:
    """Instruction -> one of PARTS, from a step's HLO text. Layers: the computations that hold one of MIXING, and
    theirs.
    """
    lines: dict[str, list[str]] = {}
    inside = ""
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            inside = header[1]
            lines[inside] = []
        elif INSTRUCTION.match(line):
            lines[inside].append(line)
    layers, todo = set(), [name for name, own in lines.items() if any(each in line for line in own for each in MIXING)]
    while todo:
        name = todo.pop()
        if name in layers:
            continue
        layers.add(name)
        for line in lines[name]:
            todo += CALLED.findall(line) + [b.strip(" %") for found in BRANCHES.findall(line) for b in found.split(",")]
    parts = {}
    for name, own in lines.items():
        for line in own:
            found = INSTRUCTION.match(line)
            assert found is not None
            if any(each in line for each in PRODUCTS):
                parts[found[1]] = PARTS[0]
            elif any(each in line for each in MIXING):
                parts[found[1]] = PARTS[1]
            else:
                parts[found[1]] = PARTS[2] if name in layers else PARTS[3]
    return parts


def own_times(spans: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """(name, start, duration) of nested spans of one thread -> name -> its own time, without what ran inside."""
    own: dict[str, float] = collections.defaultdict(float)
    open_: list[tuple[str, float]] = []
    for name, start, duration in sorted(spans, key=lambda span: (span[1], -span[2])):
        while open_ and open_[-1][1] <= start:
            open_.pop()
        own[name] += duration
        if open_:
            own[open_[-1][0]] -= duration
        open_.append((name, start + duration))
    return dict(own)


def measure(model: str, tokens: int, depth: int) -> dict[str, Any]:
    """Milliseconds of each part in a decode step of one sequence that holds `depth` tokens. Raises PacklightError."""
    import jax

    import packlight
    from packlight.bench.programs import Packlight
    from packlight.compile.plan import Phase

    case = Case("tg", tokens, depth=depth)
    config = packlight.CompileConfig(context=case.context, decode_batch=(1,))
    llm = packlight.load(model, config)
    if llm.config.kernel_path != "native":
        raise ConfigError(f"a breakdown needs native kernels; here run: {llm.config.kernel_path}")
    (key,) = (key for key in llm.executables.built if key.phase is Phase.DECODE)
    parts = parts_of(llm.executables[key].as_text())  # pyright: ignore[reportFunctionMemberAccess]
    program = Packlight("native", llm)
    program.start(case)
    program.run()
    with tempfile.TemporaryDirectory() as folder:
        quiet = jax.profiler.ProfileOptions()
        quiet.python_tracer_level = 0  # which would slow the host's part of a step
        with jax.profiler.trace(folder, profiler_options=quiet):
            seconds = program.run().seconds
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
        times = _times(profile, parts)
    program.stop()
    wall = 1e3 * seconds / tokens
    each = {part: times[part] / 1e6 / tokens for part in PARTS}
    outside = {"outside the program": wall - sum(each.values())}
    return {**file_facts(model), "machine": machine(), "depth": depth, "tokens": tokens, "step_ms": wall} | {
        "parts_ms": each | outside
    }


def _times(profile: Any, parts: Mapping[str, str]) -> dict[str, float]:
    """Part -> nanoseconds, over all threads of a profile."""
    times: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for plane in profile.planes:
        for line in plane.lines:
            spans = [(event.name, event.start_ns, event.duration_ns) for event in line.events if event.name in parts]
            for name, time in own_times(spans).items():
                times[parts[name]] += time
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m packlight.bench.breakdown", description="where a decode step's time goes"
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args()
    try:
        record = measure(options.model, options.tokens, options.depth)
    except PacklightError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for part, time in record["parts_ms"].items():
        print(f"{part:<28}{time:>9.3f} ms{time / record['step_ms']:>8.1%}")
    append(str(options.results / "breakdown.json"), record, ("parts_ms",))


if __name__ == "__main__":
    main()
