"""A model larger than its memory: weights that are streamed, beside the same ones mapped and beside llama.cpp's mmap.

    python -m packlight.bench.streamed --model=FILE [--budget=1500000000] [--others=600000000] [--ahead=2] [--tokens=8]
        [--rounds=3] [--prompts=16,64,128] [--peer_python=PYTHON]

Each run is a process of its own, in a memory control group of its own (version 1) whose limit is the budget and what
the rest of a process takes, `others`; both files leave the system's cache before it. Without such groups the line "no
limit" says so, and only streamed weights keep to a budget then. In every round the disk is read first, at the faster of
two ways. A line on stderr for each run, then two tables on stdout, medians with their range. The first has tokens per
second, their share of what the disk could give, which is its speed over the bytes that a token reads, and how much of
the time layers and experts were being read: of a disk whose speed moves that alone says whether it is the limit. Of a
mixture it has how many of the chosen experts were there too. The second has
prompts, where any are named: seconds when all weights are in memory, when each layer is read when it is needed, and
when it is read ahead, and the last in the sum of copy and computation.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import mmap
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import packlight
from packlight.bench.machine import threads
from packlight.bench.mapped import greedy
from packlight.bench.peers import WORKER
from packlight.bench.worker import Worker
from packlight.common.room import used_at
from packlight.compile.config import CompileConfig, default_config
from packlight.model.weights.residence import Residence
from packlight.quant.kernels.native_stream import StreamCounts

GROUPS = pathlib.Path("/sys/fs/cgroup/memory")
ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'  # what a shell does with a group and a command
READ_BYTES, READERS, READ_AT_A_TIME = 1 << 30, 2, 4 << 20  # of a disk's speed
PROMPT = [*range(300, 332)]  # token ids
KINDS = ("streamed", "each when needed", "mapped", "llama.cpp")


def config_of(kind: str, options: argparse.Namespace) -> CompileConfig:
    """What a run of packlight is compiled for."""
    prompts = tuple(sorted({16, *options.prompts}))
    weights = {"weights": "mapped"}
    if kind in ("streamed", "each when needed"):
        ahead = options.ahead if kind == "streamed" else 0
        weights = {"weights": "streamed", "weights_budget": options.budget, "weights_ahead": ahead}
    keys = {"context": 512, "prefill_buckets": prompts, "decode_batch": (1,), **weights}
    return dataclasses.replace(default_config("cpu"), **keys)


def child(kind: str, options: argparse.Namespace) -> None:
    """Loads the model, writes a text and reads prompts; prints what was measured."""
    with packlight.load(options.model, config_of(kind, options)) as llm:
        llm.generate(PROMPT, **greedy(2))
        began, before = time.perf_counter(), llm.streamed
        done = llm.generate(PROMPT, **greedy(options.tokens))
        seconds, after = time.perf_counter() - began, llm.streamed
        facts: dict[str, Any] = {"tok_s": done.timings["decode_tok_s"], "ids": done.token_ids, "warnings": llm.warnings}
        facts |= {"plan": str(llm.memory), "prompts": {}}
        where = llm.memory.residence
        if before is not None and after is not None and isinstance(where, Residence):
            facts |= reading(before, after, where, seconds, len(done.token_ids))
        for count in options.prompts:
            for number in (1, 2):  # no beginning is shared with what the slot holds
                before = llm.streamed
                began = time.perf_counter()
                llm.generate([7 * number + count] * count, **greedy(1))
                seconds, after = time.perf_counter() - began, llm.streamed
                copied = read_seconds(before, after) if before is not None and after is not None else 0.0
            facts["prompts"][count] = (seconds, copied)
    print(json.dumps(facts))


def read_seconds(before: StreamCounts, after: StreamCounts) -> float:
    """How long layers and experts were read between two counts."""
    return (after.reading_ns - before.reading_ns + after.experts_waited_ns - before.experts_waited_ns) / 1e9


def reading(
    before: StreamCounts, after: StreamCounts, where: Residence, seconds: float, tokens: int
) -> dict[str, float]:
    """What a text of so many tokens read, in so many seconds: bytes a token, its share of the time, and what of the
    chosen experts was there, where there are any.
    """
    step = where.step_bytes + (after.experts_bytes - before.experts_bytes) // tokens
    ready, late = after.experts_ready - before.experts_ready, after.experts_read - before.experts_read
    there = {"there": ready / (ready + late)} if ready + late else {}
    return {"step_bytes": step, "busy": read_seconds(before, after) / seconds, **there}


def disk_speed(path: str) -> float:
    """Bytes a second of a cold file, past the system's cache, or in huge pages through it: whichever is more."""
    size = min(READ_BYTES, os.path.getsize(path)) // READ_AT_A_TIME * READ_AT_A_TIME
    forget(path)

    def read(first: int) -> None:
        fd, memory = os.open(path, os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, READ_AT_A_TIME)
        for at in range(first, size, READERS * READ_AT_A_TIME):
            os.preadv(fd, [memory], at)
        os.close(fd)

    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read, range(0, READERS * READ_AT_A_TIME, READ_AT_A_TIME)))
    past = size / (time.perf_counter() - began)
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    memory.madvise(mmap.MADV_HUGEPAGE)
    memory.madvise(mmap.MADV_RANDOM)  # nothing behind what is asked
    began = time.perf_counter()
    memory.madvise(22)  # MADV_POPULATE_READ
    through = size / (time.perf_counter() - began)
    memory.close()
    forget(path)
    return max(past, through)


def forget(path: str) -> None:
    """Takes a file out of the system's cache."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@contextlib.contextmanager
def limited(nbytes: int) -> Iterator[pathlib.Path | None]:
    """A control group whose processes have so much memory; None where none can be made."""
    group = GROUPS / f"packlight-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(nbytes))
    except OSError as error:
        print(f"no limit: {error}", file=sys.stderr)
        yield None
        return
    try:
        yield group
    finally:
        with contextlib.suppress(OSError):
            (group / "memory.force_empty").write_text("0")
        group.rmdir()


def entering(group: pathlib.Path | None, command: list[str]) -> list[str]:
    """The command, run in the group."""
    return command if group is None else ["sh", "-c", ENTER, str(group), *command]


def packlight_run(kind: str, options: argparse.Namespace, group: pathlib.Path | None) -> dict[str, Any]:
    """Raises CalledProcessError where it fails."""
    command = [sys.executable, "-m", "packlight.bench.streamed", f"--model={options.model}", f"--child={kind}"]
    command += [f"--{name}={getattr(options, name)}" for name in ("budget", "ahead", "tokens")]
    command.append(f"--prompts={','.join(map(str, options.prompts))}")
    done = subprocess.run(entering(group, command), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def peer_run(options: argparse.Namespace, group: pathlib.Path | None) -> dict[str, Any]:
    """llama.cpp's tokens per second, its weights mapped, and not laid out anew in memory, which ends it here."""
    with Worker("llama.cpp", entering(group, [options.peer_python, str(WORKER)])) as worker:
        worker.ask(do="load", model=os.path.abspath(options.model), threads=threads(), repack=False)
        worker.ask(do="start", phase="tg", tokens=options.tokens, context=512, prompts=[PROMPT])
        done = worker.ask(do="run")
        return {"tok_s": 1 / statistics.median(done["gaps"]), "prompts": {}, "warnings": ()}


def weights_file(options: argparse.Namespace) -> str:
    """The file that streamed and mapped weights are in, made if it is not there.

    Another process makes it, as what this one has mapped would stay in the system's cache.
    """
    packlight_run("streamed", options, None)
    return str(max(default_config("cpu").store_dir.expanduser().glob("*.weights"), key=used_at))


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def report(found: dict[str, list[dict[str, Any]]], disks: list[float], options: argparse.Namespace) -> None:
    print(f"disk: {spread([each / 1e9 for each in disks])} GB/s")
    for kind, runs in found.items():
        rates, last = [run["tok_s"] for run in runs], runs[-1]
        line = f"{kind:<17} {spread(rates)} tokens/s, {last['peak'] / 1e6:,.0f} MB at most"
        if step := last.get("step_bytes"):
            shares = [rate * step / disk for rate, disk in zip(rates, disks, strict=True)]
            line += f", {step / 1e6:,.0f} MB a token, {spread(shares)} of the disk's speed"
            line += f", which is read {spread([run['busy'] for run in runs])} of the time"
        if "there" in last:
            line += f"; {spread([run['there'] for run in runs])} of the chosen experts were there"
        print(line)
    for count in map(str, options.prompts):
        whole, alone, ahead = (
            [run["prompts"][count] for run in found[kind]] for kind in ("in memory", "each when needed", "streamed")
        )
        shares = [
            after / (copied + once) for (once, _), (_, copied), (after, _) in zip(whole, alone, ahead, strict=True)
        ]
        seconds = [spread([seconds for seconds, _ in runs]) for runs in (whole, alone, ahead)]
        copy = spread([copied for _, copied in alone])
        print(
            f"prompt of {count}: {seconds[0]} s in memory, copy {copy}; {seconds[1]} in turn, {seconds[2]} ahead, ",
            end="",
        )
        print(f"{spread(shares)} of copy + computation")
    for kind, runs in found.items():
        print(f"{kind}: {runs[-1].get('plan', '')}", *runs[-1]["warnings"], sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m packlight.bench.streamed", description="a model larger than its memory"
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--budget", type=int, default=1_500_000_000, help="bytes of weights in memory")
    parser.add_argument("--others", type=int, default=600_000_000, help="bytes for the rest of a process")
    parser.add_argument("--ahead", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--prompts", type=lambda text: [*map(int, filter(None, text.split(",")))], default=[16, 64, 128]
    )
    parser.add_argument("--peer_python", help="a Python that has llama_cpp")
    parser.add_argument("--child", help="measure this kind in this process alone, which prints JSON")
    options = parser.parse_args()
    if options.child:
        child(options.child, options)
        return
    weights = weights_file(options)
    kinds = [kind for kind in ("in memory", *KINDS) if options.prompts or kind in ("streamed", "mapped", "llama.cpp")]
    kinds = [kind for kind in kinds if options.peer_python or kind != "llama.cpp"]
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    disks = []
    for number in range(options.rounds):
        disks.append(disk_speed(weights))
        for kind in kinds if number % 2 else reversed(kinds):
            for path in (weights, options.model):
                forget(path)
            with contextlib.ExitStack() as stack:
                limit = options.budget + options.others
                group = None if kind == "in memory" else stack.enter_context(limited(limit))
                run = peer_run if kind == "llama.cpp" else lambda *given, kind=kind: packlight_run(kind, *given)
                made = run(options, group)
                peak = (group / "memory.max_usage_in_bytes").read_text() if group else "0"
            found[kind].append(made | {"peak": int(peak)})
            told = f"{number} {kind}: {made['tok_s']:.2f} tokens/s; disk {disks[-1] / 1e9:.2f} GB/s"
            print(told, file=sys.stderr, flush=True)
    report(found, disks, options)
    if len({tuple(run["ids"]) for kind, runs in found.items() for run in runs if kind != "llama.cpp"}) > 1:
        print("ids differ", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
