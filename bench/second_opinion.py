"""Both servers as guidellm sees them, beside our own loop: whether two load generators agree.

    python -m venv OTHER && OTHER/bin/pip install guidellm
    python -m packlight.bench.second_opinion --guidellm=OTHER/bin/guidellm --model=FILE [--peer_server=PROGRAM]

A table on stdout: tokens per second, first tokens and gaps of as many clients as slots, by either loop in turn, with
texts of the same lengths. guidellm polls without pause by default, which two cores cannot spare: it is told to sleep.
"""

import argparse
import asyncio
import functools
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from packlight.bench import servers
from packlight.bench.load import Figures, Ids, Sizes, figures, loop
from packlight.bench.machine import threads
from packlight.bench.servers import Server
from packlight.bench.worker import WorkerError
from packlight.common.errors import PacklightError
from packlight.model.text.tokenizer import Tokenizer

CALM = {"GUIDELLM__MAX_WORKER_PROCESSES": "1", "GUIDELLM__DEFAULT_ASYNC_LOOP_SLEEP": "0.002"}
SHOWN = ("tok_s", "first_p50_s", "first_p95_s", "gap_p50_s")


def texts(tokenizer: Tokenizer, sizes: Sizes, seed: int) -> list[str]:
    """Random texts of a prompt's tokens, or a few less, one for each request."""
    ids, found = Ids(tokenizer.vocab_size, seed), []
    for _ in range(sizes.clients * sizes.requests):
        text = tokenizer.decode(ids(sizes.prompt))
        while (over := len(tokenizer.encode(text)) - sizes.prompt) > 0:
            text = text[: -max(1, over // 2)]
        found.append(text)
    return found


def by_guidellm(program: str, server: Server, prompts: Sequence[str], sizes: Sizes) -> Figures:
    """The figures of guidellm's report. Raises WorkerError when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        data, report = pathlib.Path(folder, "texts.jsonl"), pathlib.Path(folder, "report.json")
        rows = [{"prompt": text, "output_tokens_count": sizes.answer} for text in prompts]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        command = [
            *(program, "run", "--disable-console", "--output", f"kind=json,path={report}"),
            *("--backend", f"kind=openai_http,target={server.client.url},request_format=/v1/completions"),
            *("--profile", f"kind=concurrent,streams={sizes.clients}", "--data", f"kind=json_file,path={data}"),
            *("--constraint", f"kind=max_requests,count={len(prompts)}"),
        ]
        done = subprocess.run(command, cwd=folder, env=os.environ | CALM, capture_output=True, text=True, check=False)
        if done.returncode or not report.exists():
            raise WorkerError(f"guidellm: {(done.stderr.strip().splitlines() or ['it made no report'])[-1]}")
        return read_report(json.loads(report.read_text(encoding="utf-8")))


def read_report(report: dict) -> Figures:
    """Our figures from a report of guidellm 0.8; its gaps are means of a request. Raises WorkerError of no answers."""
    (benchmark,) = report["benchmarks"]
    whole, failed = benchmark["requests"]["successful"], len(benchmark["requests"]["errored"])
    if not whole:
        raise WorkerError(f"guidellm: none of {failed} requests was answered")
    seconds = max(each["request_end_time"] for each in whole) - min(each["request_start_time"] for each in whole)
    firsts = benchmark["metrics"]["time_to_first_token_ms"]["successful"]["percentiles"]
    return {
        "failed": failed,
        "tok_s": sum(each["output_tokens"] for each in whole) / seconds,
        "first_p50_s": firsts["p50"] / 1e3,
        "first_p95_s": firsts["p95"] / 1e3,
        "gap_p50_s": statistics.median(each["inter_token_latency_ms"] for each in whole) / 1e3,
    }


def by_us(server: Server, prompts: Sequence[str], sizes: Sizes) -> Figures:
    """The same clients by our own loop."""
    work = [[(text, sizes.answer) for text in prompts[i :: sizes.clients]] for i in range(sizes.clients)]
    return figures(asyncio.run(loop(server.client, work)))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m packlight.bench.second_opinion", description="servers under load, by guidellm and by us"
    )
    parser.add_argument("--guidellm", required=True, help="the program, in an environment of its own")
    parser.add_argument("--model", required=True)
    parser.add_argument("--peer_server", help="program llama-server; without it packlight is measured alone")
    parser.add_argument("--slots", type=int, default=4)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # its servers end with it
    sizes = Sizes(clients=options.slots)
    try:
        tokenizer = Tokenizer.from_gguf(options.model)
        start = [functools.partial(servers.packlight, options.model, options.slots, sizes.context)]
        if options.peer_server:
            peer = (options.peer_server, options.model, options.slots, sizes.context, threads())
            start.append(functools.partial(servers.llama_server, *peer))
        print(f"{'':<28}" + "".join(f"{key:>14}" for key in SHOWN))
        for make in start:
            with make() as server:
                by_us(server, texts(tokenizer, sizes, 0), sizes)  # to warm up
                found = {
                    "our loop": by_us(server, texts(tokenizer, sizes, 1), sizes),
                    "guidellm": by_guidellm(options.guidellm, server, texts(tokenizer, sizes, 2), sizes),
                    "our loop again": by_us(server, texts(tokenizer, sizes, 3), sizes),
                }
            for name, each in found.items():
                cells = "".join(f"{each[key]:>14.3f}" if key in each else f"{'':>14}" for key in SHOWN)
                print(f"{f'{server.name}, {name}':<28}{cells}")
    except PacklightError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
