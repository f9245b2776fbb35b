"""Weights that are mapped beside weights that are read: the start, the speed of text, and the process's memory.

    python -m packlight.bench.mapped --model=FILE [--context=512] [--tokens=128] [--rounds=5]

Each run is a process of its own, resident and mapped in turn, warm: a first run of each compiles and writes. A line on
stderr for each, then a table on stdout, of medians with their range: seconds until the weights are there (`load_s`) and
until the model is loaded, from the start of Python; tokens per second; anonymous and file pages after the text. Speeds
of processes apart differ by what else the machine does, so a last line is of both in one process, a short text each in
turn. Exits with 1 where ids differ.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import packlight
from packlight.bench.machine import resident
from packlight.prepared import Weights

WEIGHTS: tuple[Weights, ...] = ("resident", "mapped")
PROMPT = [*range(300, 332)]  # token ids
TURNS, TURN_TOKENS = 8, 24  # of a round in one process
ROWS = {  # what is measured -> its title and its unit
    "load_s": ("weights there, s", 1.0),
    "start_s": ("model loaded, s", 1.0),
    "decode_tok_s": ("tokens/s", 1.0),
    "anonymous": ("anonymous, MB", 1e6),
    "file": ("file pages, MB", 1e6),
}


def greedy(tokens: int) -> packlight.Sampling:
    return {"temperature": 0, "max_tokens": tokens, "ignore_eos": True}


def child(model: str, weights: Weights, context: int, tokens: int) -> None:
    """Loads the model and writes a text: a line when it is loaded, and a line of what was measured."""
    llm = packlight.load(model, context=context, slots=1, weights=weights)
    print(flush=True)
    llm.generate(PROMPT, **greedy(8))  # what comes first is slower
    done = llm.generate(PROMPT, **greedy(tokens))
    anonymous, file = resident(os.getpid())
    facts = {"load_s": llm.timings["load_s"], "decode_tok_s": done.timings["decode_tok_s"], "ids": done.token_ids}
    facts |= {"anonymous": anonymous, "file": file, "misses": llm.executables.misses, "warnings": llm.warnings}
    print(json.dumps(facts | {"plan": str(llm.memory)}))


def run(options: argparse.Namespace, weights: str) -> dict[str, Any]:
    """What a process of its own measures. Raises CalledProcessError where it fails."""
    command = [sys.executable, "-m", "packlight.bench.mapped", f"--model={options.model}", f"--weights={weights}"]
    command += [f"--context={options.context}", f"--tokens={options.tokens}"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        start = time.perf_counter() - began
        said = process.stdout.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return json.loads(said) | {"start_s": start}


def ratios(options: argparse.Namespace) -> list[float]:
    """Speeds of mapped weights in those of resident ones, of texts that follow each other in one process."""
    plain, mapped = (packlight.load(options.model, context=options.context, slots=1, weights=each) for each in WEIGHTS)
    found = []
    for number in range(1 + TURNS * options.rounds):  # the first one warms up
        pair = (plain, mapped) if number % 2 else (mapped, plain)
        speeds = {id(llm): llm.generate(PROMPT, **greedy(TURN_TOKENS)).timings["decode_tok_s"] or 0 for llm in pair}
        found.append(speeds[id(mapped)] / speeds[id(plain)])
    return sorted(found[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m packlight.bench.mapped", description="mapped weights beside read ones"
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", choices=WEIGHTS, help="measure these in this process alone, which prints JSON")
    options = parser.parse_args()
    if options.weights:
        child(options.model, options.weights, options.context, options.tokens)
        return
    found: dict[str, list[dict[str, Any]]] = {weights: [] for weights in WEIGHTS}
    try:
        for number in range(1 + options.rounds):  # the first one warms up
            for weights in WEIGHTS if number % 2 else reversed(WEIGHTS):
                found[weights].append(made := run(options, weights))
                told = ", ".join(f"{title} {made[name] / unit:.3f}" for name, (title, unit) in ROWS.items())
                print(f"{number} {weights}: {told}", file=sys.stderr, flush=True)
    except subprocess.CalledProcessError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{'':<18}" + "".join(f"{weights:>28}" for weights in WEIGHTS))
    for name, (title, unit) in ROWS.items():
        cells = []
        for weights in WEIGHTS:
            values = sorted(each[name] / unit for each in found[weights][1:])
            cells.append(f"{statistics.median(values):.3f} ({values[0]:.3f}-{values[-1]:.3f})")
        print(f"{title:<18}" + "".join(f"{cell:>28}" for cell in cells))
    times = ratios(options)
    low, high = times[len(times) // 4], times[-1 - len(times) // 4]
    print(f"in one process, {len(times)} pairs: {statistics.median(times):.3f} times (half: {low:.3f}-{high:.3f})")
    for weights in WEIGHTS:
        last = found[weights][-1]
        print(f"{weights}: {last['plan']}", *last["warnings"], sep="\n")
    if len({tuple(each["ids"]) for runs in found.values() for each in runs}) > 1:
        print("ids differ", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
