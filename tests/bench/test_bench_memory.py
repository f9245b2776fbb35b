"""The measurement of memory: packlight's half of a record, and what watches a process."""

import os
import subprocess
import sys
import time

import pytest
from ggufs import NOISE, write_llama
from running import write_config

from packlight import demo
from packlight.bench import memory, render
from packlight.model.gguf.reader import open_gguf
from packlight.model.text.tokenizer import Tokenizer


def test_a_record_holds_what_was_planned_and_what_was_taken(tmp_path, monkeypatch, capsys):
    model = write_llama(tmp_path / "m.gguf", **NOISE)
    lengths = ["--context=4096", "--prompt_tokens=200", "--gen_tokens=3"]
    folders = [f"--cache={os.environ['XDG_CACHE_HOME']}", f"--results={tmp_path}"]
    config = write_config(tmp_path / "small.toml")
    monkeypatch.setattr(sys, "argv", ["memory", f"--model={model}", f"--config={config}", *lengths, *folders])
    memory.main()
    (record,) = render.records(tmp_path)["memory-m-4096"]
    (runs,) = record["memory"]
    warm = runs.pop("packlight")
    assert (record["context"], record["gen_tokens"]) == (4096, 3)
    assert not runs
    assert 190 < warm["prompt_tokens"] <= 200
    for run in (record["cold"], warm):
        assert 0 < run["weights_bytes"] <= record["file_bytes"]
        parts = ("weights_bytes", "kv_bytes", "scratch_bytes", "process_bytes")
        assert run["planned_bytes"] == sum(run[part] for part in parts)
        # the kernel keeps the peak of the sum; the looks may miss it, and its parts peak at times of their own
        assert max(run["peak_anonymous_bytes"], run["peak_file_bytes"]) <= run["peak_rss_bytes"]
    assert warm["compiled"] == 0
    # R32; its executables are few, and small without LLVM's optimizations
    assert 0.8 < warm["peak_rss_bytes"] / warm["planned_bytes"] < 1.1
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_the_table_shows_both_programs():
    ours = {"prompt_tokens": 32, "planned_bytes": 7e8, "peak_rss_bytes": 9.6e8, "peak_anonymous_bytes": 8.6e8}
    theirs = {"peak_rss_bytes": 1.2e9, "peak_anonymous_bytes": 5e8}
    record = {"file": "m-Q4_K_M.gguf", "file_bytes": 6e8, "context": 2048}
    memory = [{"packlight": ours, "llama.cpp": theirs}, {"packlight": ours | {"prompt_tokens": 1984}}]
    other = render.records()["tinyllama-1.1b"][-1]
    found = {"tinyllama-1.1b": other, "memory-m-2048": record | {"memory": memory, "machine": other["machine"]}}
    text = render.tables({name: [each] for name, each in found.items()})
    assert "| m-Q4_K_M | 2,048 | 32 | 600 | 700 | 960 | 860 | 1,200 | 500 |" in text
    assert "| m-Q4_K_M | 2,048 | 1,984 | 600 | 700 | 960 | 860 |  |  |" in text


def test_watching_sees_what_a_process_takes():
    code = "import time; held = bytearray(b'x' * (64 << 20)); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with memory.watched(process.pid) as most:
            process.stdout.readline()
            time.sleep(0.1)
        process.kill()
    assert 64 << 20 <= most["peak_anonymous_bytes"] < 192 << 20
    assert most["peak_file_bytes"] > 0


@pytest.mark.parametrize("tokens", [8, 100])
def test_prompts_are_as_long_as_wanted(tokens):
    tokenizer = Tokenizer.from_file(open_gguf(demo.MODEL))
    assert tokens - 1 <= len(tokenizer.encode(memory.prompt_text(tokenizer, tokens))) <= tokens
