"""packlight's server under load, beside llama.cpp's in turn: `make bench-serving`.

    python -m packlight.bench.serving [--model=FILE | --models=FOLDER] [--peer_server=PROGRAM] [--rounds=3]
                                      [--only=LOAD,LOAD] [--slots=4] [--results=FOLDER]

Both servers are alive with the same file, threads, slots and context, and take turns load by load; who comes first
changes with every round. `bench/load.py` says what the loads are. "overhead" is the engine alone, in a process without
a server, beside the server with the same prompts. The table goes to stdout, the record is added to
`bench/results/serving-MODEL.json`. Exits with 1, a line each on stderr, where an aim is missed.

Without --model it makes, or finds in --models, a synthetic TinyLlama-1.1B Q4_K_M file. How to build llama-server from
the source that llama-cpp-python ships stands in docs/speed.md.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from packlight.bench import servers
from packlight.bench.command import append
from packlight.bench.load import LOADS, Figures, Ids, Load, Sizes, loop
from packlight.bench.load_table import OURS, THEIRS, better, medians
from packlight.bench.load_table import overhead as share_of_engine
from packlight.bench.machine import ROOT, cpu_seconds, file_facts, machine, threads
from packlight.bench.render import RESULTS, load
from packlight.bench.servers import Server
from packlight.bench.versus import Checkout
from packlight.bench.worker import WorkerError
from packlight.common.errors import PacklightError
from packlight.model.text.tokenizer import Tokenizer

OVERHEAD = "overhead"
# aims for the 1.1B file
RATE, FIRST, GAP_S, OVER = 2.5, 2.0, 0.3, 0.03
STEPS, BESIDE_S = 3, 0.020


def round_of(each: Sequence[Server], load: Load, sizes: Sizes, vocab: int, *seed: int) -> dict[str, Figures]:
    """One load on every server in turn; with each figure what the generator and the waiting servers took of a core."""
    found = {}
    for server in each:
        idle = [other.pid for other in each if other is not server]
        before, began, used = sum(map(cpu_seconds, idle)), time.perf_counter(), time.process_time()
        figures = asyncio.run(_run(load, server, sizes, Ids(vocab, *seed)))
        took = time.perf_counter() - began
        found[server.name] = figures | {
            "generator": (time.process_time() - used) / took,
            "idle": (sum(map(cpu_seconds, idle)) - before) / took,
        }
    return found


async def _run(load: Load, server: Server, sizes: Sizes, ids: Ids) -> Figures:
    return await load(server.client, sizes, ids)


def warm(server: Server, sizes: Sizes, vocab: int) -> None:
    """A first request of every client. Raises WorkerError with what the server says where it does not answer them."""
    replies = asyncio.run(loop(server.client, [[(Ids(vocab, 0)(sizes.own), sizes.turn)]] * sizes.clients))
    if errors := [reply.error for reply in replies if reply.error]:
        raise WorkerError(f"{server.name}: {errors[0]}; {server.last_words()}")


def overhead(server: Server, engine: Checkout, sizes: Sizes, ids: Ids, engine_first: bool) -> tuple[float, float]:
    """Tokens per second of as many answers as there are slots: through the server, and by the engine alone."""
    prompts = [ids(sizes.own) for _ in range(sizes.clients)]
    total = sizes.clients * sizes.together

    def served() -> float:
        replies = asyncio.run(loop(server.client, [[(prompt, sizes.together)] for prompt in prompts]))
        if errors := [reply.error for reply in replies if reply.error]:
            raise WorkerError(f"{server.name}: {errors[0]}")
        return max(reply.times[-1] for reply in replies) - min(reply.sent for reply in replies)

    def alone() -> float:
        return engine.ask(do="together", prompts=prompts, tokens=sizes.together)["seconds"]

    if engine_first:
        by_engine, by_server = alone(), served()
    else:
        by_server, by_engine = served(), alone()
    return total / by_server, total / by_engine


def measure(
    start: Sequence[Callable[[], Server]],
    chosen: dict[str, Load],
    sizes: Sizes,
    vocab: int,
    rounds: int,
    engine: Callable[[], Checkout] | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Every round's figures, load by load and server by server; of the engine alone where there is one.

    start: makes the servers, packlight's first. engine: makes the process that runs the engine alone.
    """
    with contextlib.ExitStack() as stack:
        each = [stack.enter_context(make()) for make in start]
        for server in each:
            warm(server, sizes, vocab)
        rows: dict[str, dict[str, list[Figures]]] = {name: {s.name: [] for s in each} for name in chosen}
        for number in range(rounds):
            for name, load in chosen.items():
                order = each[::-1] if number % 2 else each
                seed = 1 + number, list(LOADS).index(name)
                for server, figures in round_of(order, load, sizes, vocab, *seed).items():
                    rows[name][server].append(figures)
                    say(f"round {number + 1}, {name}, {server}: {_shown(figures)}")
                for server in order:
                    for error in server.client.told():
                        say(f"{server.name}: {error}")
        found: dict[str, Any] = {"serving": rows}
        if engine is not None:
            alone = stack.enter_context(engine())
            overhead(each[0], alone, sizes, Ids(vocab, 0, len(LOADS)), False)
            pairs = [
                overhead(each[0], alone, sizes, Ids(vocab, 1 + number, len(LOADS)), bool(number % 2))
                for number in range(max(rounds, 5))
            ]
            found["overhead"] = {"served_tok_s": [a for a, _ in pairs], "alone_tok_s": [b for _, b in pairs]}
            say(f"{OVERHEAD}: {share_of_engine(found):.1%}")
        return found


def _shown(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def missed(record: dict[str, Any]) -> Iterator[str]:
    """A line for each aim that the record's medians do not reach; an aim whose load was not run is not missed."""
    rows = record["serving"]
    ours = {name: medians(by_server[OURS]) for name, by_server in rows.items()}
    for name, figures in ours.items():
        if figures["failed"]:
            yield f"{name}: {figures['failed']:.0f} requests failed"
        if figures["unhealthy"]:
            yield f"{name}: /health was refused"
    if THEIRS in rows.get("several", {}):
        for key, aim in (("tok_s", RATE), ("first_p95_s", FIRST)):
            found = better(key, *(rows["several"][server] for server in (OURS, THEIRS)))
            if found and found[0] < aim:
                yield f"several: {key} {found[0]:.2f} times better, less than {aim:g}"
    gap = ours.get("arrival", {}).get("gap_max_s", 0)
    if gap > GAP_S:
        yield f"arrival: largest gap {gap:.3f} s, more than {GAP_S:g}"
    if "first_p50_s" in ours.get("turns", {}) and "gap_p50_s" in ours.get("one", {}):
        first, most = ours["turns"]["first_p50_s"], STEPS * ours["one"]["gap_p50_s"] + BESIDE_S
        if first > most:
            yield f"turns: first token {first:.3f} s, more than {STEPS} decode steps and {BESIDE_S:g} s, {most:.3f}"
    over = share_of_engine(record)
    if over is not None and over > OVER:
        yield f"overhead: {over:.1%} of the engine's tokens/s, more than {OVER:.0%}"


def _model(named: str | None, folder: pathlib.Path) -> str:
    """The file to serve; without a name the suite's own, written where it is not yet."""
    if named:
        return named
    from packlight.bench.suite import SUITE, written

    folder.mkdir(parents=True, exist_ok=True)
    return str(written(SUITE["tinyllama-1.1b"], folder))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m packlight.bench.serving", description="packlight's server under load, beside llama.cpp's"
    )
    parser.add_argument("--model", help="GGUF file (default: a synthetic TinyLlama-1.1B Q4_K_M)")
    parser.add_argument("--models", type=pathlib.Path, default=pathlib.Path("bench-models"), help="folder of it")
    parser.add_argument("--peer_server", help="program llama-server; without it packlight is measured alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help=f"commas between: {', '.join((*LOADS, OVERHEAD))}")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # its servers end with it
    sizes = Sizes(clients=options.slots)
    names = options.only.split(",") if options.only else [*LOADS, OVERHEAD]
    if unknown := [name for name in names if name not in (*LOADS, OVERHEAD)]:
        parser.error(f"--only: no load {unknown[0]!r}; there are: {', '.join((*LOADS, OVERHEAD))}")
    chosen = {name: LOADS[name] for name in names if name != OVERHEAD}
    say = functools.partial(print, file=sys.stderr, flush=True)
    try:
        model = _model(options.model, options.models)
        vocab = Tokenizer.from_gguf(model).vocab_size
        start = [functools.partial(servers.packlight, model, options.slots, sizes.context)]
        record: dict[str, Any] = {
            **file_facts(model),
            "machine": machine(),
            "threads": threads(),
            "slots": options.slots,
            "context": sizes.context,
            "sizes": dataclasses.asdict(sizes),
        }
        if options.peer_server:
            record["peer"] = {"name": "llama-server", "version": servers.version(options.peer_server)}
            peer = (options.peer_server, model, options.slots, sizes.context, threads())
            start.append(functools.partial(servers.llama_server, *peer))
        engine = functools.partial(Checkout, "packlight", ROOT, model, sizes.context, options.slots)
        compared = engine if OVERHEAD in names else None
        record |= measure(start, chosen, sizes, vocab, options.rounds, compared, say)
    except PacklightError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(load(record))
    options.results.mkdir(parents=True, exist_ok=True)
    append(str(options.results / f"serving-{pathlib.Path(model).stem}.json"), record, ("serving",))
    lines = list(missed(record))
    print("".join(f"aim missed: {line}\n" for line in lines), end="", file=sys.stderr)
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
