"""Start-up, first token and memory of the runner, each measured apart: one cold start, then warm ones.

Every start is a process of its own, as a user meets it. The table goes to stdout, the record with machine, commit
and file hash is added to `bench/results/startup.json`. Exits with 1, a line each on stderr, when a bound is passed.
Ratios to other programs are not this script's.

    python -m packlight.bench.startup --model=FILE [--reps=5] [--prompt_tokens=64] [--gen_tokens=16]

Without --model it makes a synthetic TinyLlama-1.1B Q4_K_M file in a temporary folder.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from packlight.bench.command import append
from packlight.bench.machine import file_facts, machine
from packlight.bench.render import RESULTS

ROOT = pathlib.Path(__file__).resolve().parents[1]
WARM_START_S = 2.0  # process start to first token from page cache, of the 1.1B file
COLD_COMPILE_S = 20.0
MEMORY_SHARE, MEMORY_MB = 0.15, 400.0  # of the file, and beside it: what a process may use beyond weights and cache


def start(model: str, cache: str, prompt: str, gen_tokens: int) -> dict[str, float]:
    """One run of `generate` in a new process; its timings plus wall seconds, MB of memory and compilations."""
    command = [sys.executable, "-m", "packlight", "generate", f"--model={model}", f"--prompt={prompt}", "--json"]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, f"--max_tokens={gen_tokens}", "--temperature=0"],
        env={**os.environ, "XDG_CACHE_HOME": cache},
        stdout=subprocess.PIPE,
        check=True,
    )
    wall = time.perf_counter() - began
    report = json.loads(done.stdout)
    timings, memory = report["timings"], report["memory"]
    return {
        "load_s": timings["load_s"],
        "compile_s": timings["compile_s"],
        "ttft_s": timings["ttft_s"],
        "start_to_first_token_s": wall - (timings["total_s"] - timings["ttft_s"]),
        "prefill_tok_s": timings["prefill_tok_s"],
        "decode_tok_s": timings["decode_tok_s"],
        "itl_p50_ms": timings["itl_p50_ms"],
        "itl_p95_ms": timings["itl_p95_ms"],
        "peak_rss_mb": memory["peak_rss_bytes"] / 1e6,
        "over_file_and_kv_mb": (memory["peak_rss_bytes"] - memory["weights_bytes"] - memory["kv_bytes"]) / 1e6,
        "compiled": report["compile"]["compiled"],
    }


def measure(model: str, reps: int, prompt_tokens: int, gen_tokens: int) -> dict[str, Any]:
    """The record of one model: a cold start, then `reps` warm ones."""
    prompt = "a " * prompt_tokens
    with tempfile.TemporaryDirectory() as cache:
        cold = start(model, cache, prompt, gen_tokens)
        warm = [start(model, cache, prompt, gen_tokens) for _ in range(reps)]
    return {**file_facts(model), "machine": machine(), "cold": cold, "warm": warm}


def passed_bounds(record: dict[str, Any]) -> list[str]:
    """A line for each bound that the record does not keep; memory's holds for every start."""
    found = []
    start = statistics.median(run["start_to_first_token_s"] for run in record["warm"])
    if start > WARM_START_S:
        found.append(f"warm start to first token {start:.2f} s, more than {WARM_START_S:g}")
    if record["cold"]["compile_s"] > COLD_COMPILE_S:
        found.append(f"cold compile {record['cold']['compile_s']:.1f} s, more than {COLD_COMPILE_S:g}")
    allowed = MEMORY_SHARE * record["file_bytes"] / 1e6 + MEMORY_MB
    for kind, runs in (("cold", [record["cold"]]), ("warm", record["warm"])):
        most = max(run["over_file_and_kv_mb"] for run in runs)
        if most > allowed:
            found.append(f"{kind} start's memory beyond weights and cache {most:.0f} MB, more than {allowed:.0f}")
    return found


def table(record: dict[str, Any]) -> str:
    """Cold, then median and spread (smallest to largest) of the warm starts."""
    lines = [
        f"{record['file']} ({record['file_bytes'] / 1e6:.0f} MB), {record['machine']['cpu']}, "
        f"{len(record['warm'])} warm starts",
        f"{'':<26}{'cold':>10}{'warm median':>14}   spread",
    ]
    for key, cold in record["cold"].items():
        values = [run[key] for run in record["warm"]]
        lines.append(
            f"{key:<26}{cold:>10.2f}{statistics.median(values):>14.2f}   {min(values):.2f} .. {max(values):.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--prompt_tokens", type=int, default=64)
    parser.add_argument("--gen_tokens", type=int, default=16)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model is None:
            from packlight.bench.synthetic import main as write_synthetic

            model = os.path.join(folder, "tinyllama-1.1b-Q4_K_M.gguf")
            write_synthetic(["--shape=tinyllama-1.1b", "--mix=Q4_K_M", f"--out={model}"])
        record = measure(model, options.reps, options.prompt_tokens, options.gen_tokens)
    print(table(record))
    options.results.mkdir(exist_ok=True)
    append(str(options.results / "startup.json"), record, ("cold", "warm"))
    lines = passed_bounds(record)
    print("".join(f"bound passed: {line}\n" for line in lines), end="", file=sys.stderr)
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
