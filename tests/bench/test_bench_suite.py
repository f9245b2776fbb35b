"""The suite behind the tables of the README and docs/speed.md, and the tables."""

import json
import re

import pytest
from families import GOLDENS
from golden_models import OWN

from packlight.bench import render, startup, suite
from packlight.model.spec.architectures import ARCHITECTURES
from packlight.quant.layouts import FIELDS


@pytest.mark.parametrize("name", render.REGIONS)
def test_documents_show_what_the_records_say(name):
    """R29: nobody writes a number there by hand, and no marked part is forgotten."""
    text = (render.ROOT / name).read_text(encoding="utf-8")
    assert render.document(name, text) == text
    assert set(re.findall(r"<!-- (\w+):begin -->", text)) == set(render.REGIONS[name])


def test_every_marked_part_is_rendered():
    pages = [*render.ROOT.glob("*.md"), *render.ROOT.glob("docs/*.md")]
    marked = [path for path in pages if re.search(r"<!-- \w+:begin -->", path.read_text("utf-8"))]
    assert {str(path.relative_to(render.ROOT)) for path in marked} == {
        *render.REGIONS,
        "docs/server.md",
    }  # server_fields


def test_the_table_of_models_has_every_golden():
    checks = json.loads(render.CHECKS.read_text(encoding="utf-8"))
    assert set(checks) == {*GOLDENS, *OWN}
    generating = {name for name, row in ARCHITECTURES.items() if row.causal}  # encoders give vectors, not logits
    assert {check["architecture"] for check in checks.values()} == generating


def test_tables_show_losses_and_change_with_a_record(tmp_path):
    row = {"test": "tg8", "median": 5.0, "gb_s": 3.0, "share_of_limit": 0.5, "share_of_gemm": 0.1}
    record = {
        "file": "m-Q4_K_M.gguf",
        "machine": {"cpu": "C", "jax": "0", "date": "2026-01-02"},
        "threads": 2,
        "limits": {"read_gb_s": 6.0, "gemm_gflop_s": 10.0, "gemm": "f32 512x2048x5632"},
        "results": [row],
        "peer": {"name": "llama.cpp", "version": "1", "results": [{"test": "tg8", "median": 10.0}]},
        "ratio_details": {"tg8": {"median": 0.5, "spread": [0.4, 0.6]}},
    }
    (tmp_path / "tinyllama-1.1b.json").write_text(json.dumps([record | {"results": []}, record]))
    text = render.tables(render.records(tmp_path))
    assert "| tinyllama-1.1b Q4_K_M | tg8 | 5.0 | 3.0 | 50% |  | 10.0 | **0.50** | 0.40–0.60 |" in text
    record["ratio_details"]["tg8"]["median"] = 1.5
    (tmp_path / "tinyllama-1.1b.json").write_text(json.dumps([record]))
    assert "| 1.50 |" in render.tables(render.records(tmp_path))
    other = record | {"machine": record["machine"] | {"vectors": "AVX2"}, "results": [row | {"median": 7.0}]}
    (tmp_path / "tinyllama-1.1b.json").write_text(json.dumps([record, other]))
    both = render.tables(render.records(tmp_path))
    assert re.search(r"C, 2 threads.*\| tg8 \| 5\.0 .*C with AVX2, 2 threads.*\| tg8 \| 7\.0 ", both, re.DOTALL)
    assert "XLA's float32 matrix product" in both
    limits = record["limits"] | {"gemm": "bf16 8192x8192x8192"}
    paths = [{"path": "bf16", "main_over_this": {"tg8": {"median": 2.5, "spread": [2.4, 2.6]}}}]
    gpu = {"backend": "gpu", "device": "G100", "kernels": "mosaic_gpu", "limits": limits, "paths": paths}
    (tmp_path / "gpu-llama-3-8b.json").write_text(json.dumps([record | gpu]))
    text = render.tables(render.records(tmp_path))
    assert "G100, 2 threads, jax 0" in text
    assert "XLA's bfloat16 matrix product" in text
    assert "| llama-3-8b Q4_K_M, `mosaic_gpu` | tg8 | 5.0 |" in text
    assert "| Q4_K_M | tg8 | 2.50 | 2.40–2.60 |" in text
    few = record | {"file": "qwen3-4b-layers4-vocab32000-Q4_K_M.gguf"}
    (tmp_path / "shape-qwen3-4b.json").write_text(json.dumps([few]))
    assert "| qwen3-4b Q4_K_M, 4 layers | tg8 | 5.0 |" in render.tables(render.records(tmp_path))
    assert render.tables({}) == render.summary({}) == ""
    with pytest.raises(ValueError, match="bench:begin"):
        render.rendered("no markers", "bench", text)


def test_the_summary_has_the_chosen_rows_of_every_machine():
    row = {"median": 5.0, "gb_s": 3.0, "share_of_limit": 0.5, "share_of_gemm": 0.1}
    record = {
        "file": "m-Q4_K_M.gguf",
        "machine": {"cpu": "C", "date": "2026-01-02"},
        "results": [row | {"test": "pp512"}, row | {"test": "tg128"}, row | {"test": "tg7"}],
        "peer": {"results": [{"test": "tg128", "median": 10.0}]},
        "ratio_details": {"tg128": {"median": 0.5, "spread": [0.4, 0.6]}},
    }
    other = record | {"machine": record["machine"] | {"vectors": "AVX2"}, "results": record["results"][:1]}
    text = render.summary({"tinyllama-1.1b": [record, other], "format-Q8_0": [record]})
    assert text.splitlines()[2:] == [
        "| tinyllama-1.1b Q4_K_M | C | pp512 | 5.0 |  |  |  |",
        "| tinyllama-1.1b Q4_K_M | C | tg128 | 5.0 | 10.0 | **0.50** | 0.40–0.60 |",
        "| tinyllama-1.1b Q4_K_M | C with AVX2 | pp512 | 5.0 |  |  |  |",
    ]


def test_start_up_has_bounds():
    """Warm start, cold compile and memory: the bounds of the 1.1B file, and that each can be passed."""

    def record(cold=(), warm=()):
        run = {"start_to_first_token_s": 1.9, "compile_s": 19.0, "over_file_and_kv_mb": 490.0}
        return {"file_bytes": 668e6, "cold": run | dict(cold), "warm": [run | dict(warm)] * 3}

    assert startup.passed_bounds(record()) == []
    assert startup.passed_bounds(record(cold={"start_to_first_token_s": 30.0}, warm={"compile_s": 30.0})) == []
    (line,) = startup.passed_bounds(record(warm={"start_to_first_token_s": 2.1}))
    assert line == "warm start to first token 2.10 s, more than 2"
    (line,) = startup.passed_bounds(record(cold={"compile_s": 20.5}))
    assert line == "cold compile 20.5 s, more than 20"
    for kind in ("cold", "warm"):
        (line,) = startup.passed_bounds(record(**{kind: {"over_file_and_kv_mb": 501.0}}))
        assert line == f"{kind} start's memory beyond weights and cache 501 MB, more than 500"


def test_the_suite_runs_an_entry(tmp_path):
    """Everything but the sizes is real: a model is written, measured in a process, and its record rendered."""
    tiny = (("layers", 1), ("embed", 256), ("ffn", 256), ("heads", 4), ("kv_heads", 2), ("vocab", 300), ("context", 64))
    entry = suite.Entry("tinyllama-1.1b", "pure-Q8_0", ("--prompt_tokens=8", "--gen_tokens=2"), tiny, peer=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(suite.SUITE, "format-Q8_0", entry)
        suite.run("format-Q8_0", tmp_path, None, tmp_path, ["--reps=1"])
    record = render.records(tmp_path)["format-Q8_0"][-1]
    assert [row["test"] for row in record["results"]] == ["pp8", "tg2"]
    assert "| Q8_0, 1 layers |" in render.tables({"format-Q8_0": [record]})
    assert (tmp_path / entry.file).exists()


def test_every_native_format_has_an_entry():
    assert {f"format-{q}" for q in FIELDS} | {f"paths-{q}" for q in FIELDS} <= set(suite.SUITE)
    assert {*render.MODELS, *render.ACCELERATED} <= set(suite.SUITE)
