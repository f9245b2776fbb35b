"""Peak memory of a process that answers a prompt: packlight's command and llama.cpp, with the same context and threads.

    python -m packlight.bench.memory --model=FILE --context=N [--prompt_tokens=32,M] [--gen_tokens=32]
                                     [--peer_python=PATH] [--config=FILE] [--cache=FOLDER]

Every run is a process of its own. Without --config packlight has one slot and caches in float16, as llama.cpp, which
reads the same token ids. packlight's first start, which compiles and stores, is recorded as `cold`. The table goes to
stdout, the record is added to `bench/results/memory-MODEL-CONTEXT.json`.

A peak of resident memory counts pages of the mapped file, which the system can take back, so the peaks of anonymous
and of file pages stand beside it. These two are the largest of many looks, each at a time of its own.
"""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from packlight.bench.command import append
from packlight.bench.machine import file_facts, machine, peak_rss, resident, threads
from packlight.bench.peers import WORKER, peer_python
from packlight.bench.render import RESULTS
from packlight.bench.worker import Worker
from packlight.common.errors import PacklightError
from packlight.model.gguf.reader import open_gguf
from packlight.model.text.tokenizer import Tokenizer

EVERY_S = 0.01


@contextlib.contextmanager
def watched(pid: int) -> Iterator[dict[str, int]]:
    """The largest anonymous and file-backed resident memory of a process, in bytes, while the context is open."""
    most = {"peak_anonymous_bytes": 0, "peak_file_bytes": 0}
    done = threading.Event()

    def look() -> None:
        while not done.wait(EVERY_S):
            for key, now in zip(most, resident(pid), strict=True):
                most[key] = max(most[key], now)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def prompt_text(tokenizer: Tokenizer, tokens: int) -> str:
    """A text of `tokens` tokens, or a few less where a word is several."""
    one, two = (len(tokenizer.encode(text)) for text in ("a", "a a"))
    return "a" + " a" * ((tokens - one) // (two - one))


def packlight_run(command: Sequence[str], prompt: str, cache: str) -> dict[str, int]:
    """One `generate` in a new process: what it planned and what it took. Raises CalledProcessError when it fails."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(prompt)
        file.flush()
        process = subprocess.Popen(
            [*command, f"--prompt_file={file.name}", "--temperature=0", "--json"],
            env={**os.environ, "XDG_CACHE_HOME": cache},
            stdout=subprocess.PIPE,
        )
        with watched(process.pid) as most:
            out, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    report = json.loads(out)
    memory = report["memory"]
    planned = {key: memory[key] for key in ("weights_bytes", "kv_bytes", "scratch_bytes", "process_bytes")}
    return {
        "prompt_tokens": len(report["prompt_token_ids"]),
        **planned,
        "planned_bytes": sum(planned.values()),
        "peak_rss_bytes": memory["peak_rss_bytes"],
        **most,
        "compiled": report["compile"]["compiled"],
    }


def peer_run(python: str, model: str, context: int, prompt: list[int], gen_tokens: int) -> dict[str, Any]:
    """llama.cpp in a new process, as `bench/peer.py` runs it; idle_rss_bytes: what its Python takes before the model.

    Raises WorkerError when it fails.
    """
    with Worker("llama.cpp", [python, str(WORKER)]) as peer, watched(peer.pid) as most:
        peer.ask(do="stop")
        idle = peak_rss(peer.pid)
        facts = peer.ask(do="load", model=os.path.abspath(model), threads=threads())
        # as llama.cpp's own programs: layers with a sliding window cache no more than it
        peer.ask(do="start", phase="tg", tokens=gen_tokens, context=context, prompts=[prompt], swa_full=False)
        peer.ask(do="run")
        peak = peak_rss(peer.pid)
    return {"version": facts["version"], "idle_rss_bytes": idle, "peak_rss_bytes": peak, **most}


def measure(
    model: str, context: int, prompts: Sequence[int], gen_tokens: int, cache: str, peer: str | None, config: str | None
) -> dict[str, Any]:
    """The record of one model with one context: a start of packlight, then both programs for each length of prompt.

    cache: the folder in which packlight stores executables, empty for a start that is cold. peer: a Python with
    llama-cpp-python, or None. config: a TOML file for packlight, or None.
    """
    tokenizer = Tokenizer.from_file(open_gguf(model))
    texts = [prompt_text(tokenizer, tokens) for tokens in prompts]
    command = [sys.executable, "-m", "packlight", "generate", f"--model={model}", f"--context={context}"]
    command += [f"--max_tokens={gen_tokens}", *([f"--config={config}"] if config else [])]
    cold = packlight_run(command, texts[0], cache)
    runs: list[dict[str, Any]] = []
    for text in texts:
        runs.append({"packlight": packlight_run(command, text, cache)})
        if peer is not None:
            runs[-1]["llama.cpp"] = peer_run(peer, model, context, tokenizer.encode(text), gen_tokens)
    facts = {"machine": machine(), "threads": threads(), "context": context, "gen_tokens": gen_tokens}
    return {**file_facts(model), **facts, "cold": cold, "memory": runs}


def table(record: dict[str, Any]) -> str:
    """A line for each run, in MB."""
    head = f"{record['file']} ({record['file_bytes'] / 1e6:.0f} MB), context {record['context']}, MB"
    titles = ("planned", "peak RSS", "anonymous", "file pages")
    lines = [head, f"{'':<32}" + "".join(f"{title:>12}" for title in titles)]
    tokens = record["cold"]["prompt_tokens"]
    named = [(f"packlight, {tokens} tokens, cold", record["cold"])]
    for runs in record["memory"]:
        tokens = runs["packlight"]["prompt_tokens"]
        named += [(f"{program}, {tokens} tokens", run) for program, run in runs.items()]
    for name, run in named:
        keys = ("planned_bytes", "peak_rss_bytes", "peak_anonymous_bytes", "peak_file_bytes")
        cells = [f"{run[key] / 1e6:.1f}" if key in run else "" for key in keys]
        lines.append(f"{name:<32}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m packlight.bench.memory", description="peak memory beside llama.cpp's"
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--prompt_tokens", help="commas between; default: 32 and what leaves 64 tokens of the context")
    parser.add_argument("--gen_tokens", type=int, default=32)
    parser.add_argument("--peer_python", help="Python that has llama-cpp-python; without it llama.cpp is left out")
    parser.add_argument("--config", help="packlight's TOML file (default: the CPU's, which has one slot)")
    parser.add_argument("--cache", help="folder of stored executables (default: a new one, so that one start is cold)")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args()
    prompts = [int(part) for part in (options.prompt_tokens or f"32,{options.context - 64}").split(",")]
    try:
        peer = peer_python(options.peer_python) if options.peer_python else None
        with tempfile.TemporaryDirectory() as fresh:
            record = measure(
                *(options.model, options.context, prompts, options.gen_tokens),
                *(options.cache or fresh, peer, options.config),
            )
    except (PacklightError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(table(record))
    options.results.mkdir(exist_ok=True)
    name = f"memory-{pathlib.Path(options.model).stem}-{options.context}.json"
    append(str(options.results / name), record, ("memory",))


if __name__ == "__main__":
    main()
