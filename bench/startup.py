"""Start-up, first token and memory of the runner, each measured apart: one cold start, then warm ones.

Every start is a process of its own, as a user meets it. The table goes to stdout, the record with machine, commit
and file hash replaces `bench/results/startup.json`. Ratios to other programs are not this script's.

    python -m bench.startup --model=FILE [--reps=5] [--prompt_tokens=64] [--gen_tokens=16]

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

from bench.machine import file_facts, machine
from bench.render import RESULTS

ROOT = pathlib.Path(__file__).resolve().parents[1]


def start(model: str, cache: str, prompt: str, gen_tokens: int) -> dict[str, float]:
    """One run of `generate` in a new process; its timings plus wall seconds, MB of memory and compilations."""
    command = [sys.executable, str(ROOT / "run.py"), "generate", f"--model={model}", f"--prompt={prompt}", "--json"]
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
            from bench.synthetic import main as write_synthetic

            model = os.path.join(folder, "tinyllama-1.1b-Q4_K_M.gguf")
            write_synthetic(["--shape=tinyllama-1.1b", "--mix=Q4_K_M", f"--out={model}"])
        record = measure(model, options.reps, options.prompt_tokens, options.gen_tokens)
    print(table(record))
    options.results.mkdir(exist_ok=True)
    (options.results / "startup.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
