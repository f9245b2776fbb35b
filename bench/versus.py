"""This checkout of packlight beside another one, in turn: what a change did to prompts, decoding and starts.

    git worktree add OTHER COMMIT
    python -m packlight.bench.versus --model=FILE --base=OTHER [--pairs=40] [--prompt_tokens=128] [--gen_tokens=32]

Both are alive at once and take turns, A B B A, so that a machine whose speed drifts slows them alike; a ratio is the
median of the ratios of neighbours in time, beside their middle half. Starts are processes of their own, from the store
of executables, to where a model is loaded. Each checkout has the store that the environment names; entries of
different code are different entries.
"""

import argparse
import functools
import itertools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from packlight.bench.machine import ROOT
from packlight.bench.worker import Worker
from packlight.common.errors import PacklightError

SIDES = ("base", "this")


class Checkout(Worker):
    """A checkout with its model loaded, in so many slots. start_s: seconds from the start of its process to there."""

    def __init__(self, name: str, root: pathlib.Path, model: str, context: int, slots: int = 1):
        began = time.perf_counter()
        super().__init__(name, [sys.executable, str(ROOT / "bench" / "checkout.py"), str(root)])
        try:
            self.ask(do="load", model=model, context=context, slots=slots)
        except PacklightError:
            self.__exit__()
            raise
        self.start_s = time.perf_counter() - began


def in_turn(pairs: int, seconds: Callable[[str], float]) -> list[tuple[float, float]]:
    """Seconds of base and this, pair by pair; whoever came second in a pair comes first in the next."""
    found = []
    for i in range(pairs):
        order = SIDES if i % 2 else SIDES[::-1]
        took = {side: seconds(side) for side in order}
        found.append((took["base"], took["this"]))
    return found


def line(name: str, pairs: list[tuple[float, float]]) -> str:
    """Medians in milliseconds, and how many times as fast this checkout is: the median and the middle half."""
    ratios = sorted(base / this for base, this in pairs)
    quarter = len(ratios) // 4
    base, this = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
    middle = f"{ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f}"
    return f"{name:<10}{base:>12.2f}{this:>12.2f}{statistics.median(ratios):>10.3f}   {middle}"


def measure(model: str, base: pathlib.Path, pairs: int, prompt_tokens: int, gen_tokens: int) -> list[str]:
    """A table's lines, of prompts, decoding and starts. Raises WorkerError where a checkout fails."""
    roots: dict[str, pathlib.Path] = {"base": base, "this": ROOT}
    prompt, context = [5 + i % 200 for i in range(prompt_tokens)], prompt_tokens + gen_tokens + 1
    cases = (
        (f"pp{prompt_tokens}", "first_s", {"prompt": prompt, "tokens": 1}),
        (f"tg{gen_tokens}", "rest_s", {"prompt": prompt[:8], "tokens": gen_tokens + 1}),
    )
    lines = [f"{'':<10}{'base ms':>12}{'this ms':>12}{'speed':>10}   middle half"]
    with Checkout("base", base, model, context) as old, Checkout("this", ROOT, model, context) as new:
        sides: dict[str, Checkout] = {"base": old, "this": new}
        for name, part, request in cases:
            ran = functools.partial(_ran, sides, itertools.cycle(range(5, 205)), part, request)
            for side in SIDES:  # to warm up
                ran(side)
            lines.append(line(name, in_turn(pairs, ran)))

    def started(side: str) -> float:
        with Checkout(side, roots[side], model, context) as checkout:
            return checkout.start_s

    return [*lines, line("start", in_turn(max(pairs // 4, 1), started))]


def _ran(
    sides: Mapping[str, Checkout], firsts: Iterator[int], part: str, request: Mapping[str, Any], side: str
) -> float:
    """One run's seconds. Its prompt begins with a token of its own, so that no checkout has read it before."""
    prompt = [next(firsts), *request["prompt"][1:]]
    return sides[side].ask(do="run", **{**request, "prompt": prompt})[part]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m packlight.bench.versus", description="this checkout's speed beside another one's, in turn"
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--base", type=pathlib.Path, required=True, help="the other checkout's folder")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--prompt_tokens", type=int, default=128)
    parser.add_argument("--gen_tokens", type=int, default=32)
    options = parser.parse_args()
    try:
        tokens = (options.prompt_tokens, options.gen_tokens)
        lines = measure(options.model, options.base.resolve(), options.pairs, *tokens)
    except PacklightError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
