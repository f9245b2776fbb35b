"""What `inspect` opens with: what people ask of a file, and whether it runs on this machine."""

import json

import gguf
import pytest
from ggufs import write_llama
from running import succeed

from packlight import inspection
from packlight.cli.tables import summary_text
from packlight.compile.memory import Limit
from packlight.model.gguf.filetypes import FILE_TYPES
from packlight.quant.kernels import native_build
from packlight.quant.layouts import FIELDS

SHAPE = {"layers": 2, "embed": 256, "heads": 4, "kv_heads": 2, "ffn": 256, "vocab": 320, "context": 300}


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file whose matrices are Q4_K, on a machine of 2 GB."""
    monkeypatch.setattr(inspection, "host_limit", lambda: Limit(2 * 10**9, "free memory"))
    keys = {"general.name": "Noise 256", "general.file_type": 15, "tokenizer.chat_template": "{{ messages }}"}
    keys["tokenizer.chat_template.tool_use"] = "{{ tools }}"
    return write_llama(tmp_path / "noise.gguf", formats={"default": "Q4_K"}, **SHAPE, extra=keys)


def rows(text: str) -> dict[str, str]:
    """The titles with their texts, each on one line."""
    name, *lines = text.replace("\n" + 17 * " ", " ").splitlines()
    return {"name": name} | {line[:17].strip(): line[17:] for line in lines}


def test_it_opens_with_what_people_ask(file):
    text = succeed("inspect", file).stdout
    told, report = rows(text), json.loads(succeed("inspect", file, "--json").stdout)
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= 15
    assert told["name"] == report["name"] == "Noise 256"
    assert told["file"] == f"noise.gguf, {file.stat().st_size / 1e6:.1f} MB"
    assert told["architecture"] == "llama, 2 layers of 256, vocabulary of 320"
    matrices = 2 * (4 * 256 * 256 - 2 * 128 * 256 + 3 * 256 * 256) + 2 * 320 * 256
    assert report["parameters"] == matrices + 5 * 256
    assert told["parameters"] == f"{report['parameters']:,}"
    bits = (matrices * 4.5 + 5 * 256 * 32) / report["parameters"]
    assert told["quantization"] == f"Q4_K_M: Q4_K x16, F32 x5; {bits:.2f} bits per weight"
    assert told["context"] == "300 tokens"
    assert told["chat template"] == "default, tool_use"
    assert told["memory"].endswith(" for 300 tokens in float16; there are 2,000.0 MB (free memory)")
    memory = report["memory"]
    assert memory["bytes"] == memory["weights_bytes"] + report["cache"]["bytes"] + memory["process_bytes"]
    assert told["runs here"].startswith("yes")
    assert report["here"] == {"runs": True, "why_not": [], "slow": report["here"]["slow"]}


def test_the_rest_is_behind_a_flag(file):
    short, whole = succeed("inspect", file).stdout, succeed("inspect", file, "--verbose").stdout
    assert whole.startswith(short + "\n")
    for text in ("blk.1.ffn_up.weight", "tokenizer.ggml.tokens", "unsupported: nothing"):
        assert text in whole.removeprefix(short)
        assert text not in short


def test_too_little_memory_is_a_reason_with_the_context_that_would_fit(file, monkeypatch):
    report = inspection.inspect(file)
    less = report["memory"]["bytes"] - report["cache"]["bytes"] // 3
    monkeypatch.setattr(inspection, "host_limit", lambda: Limit(less, "free memory"))
    short = inspection.inspect(file)
    assert (short["unsupported"], short["here"]["runs"]) == ([], False)
    assert "noise.gguf does not fit: " in short["here"]["why_not"][0]
    assert "context=128 would fit" in short["here"]["why_not"][0]
    assert rows(summary_text(short))["runs here"] == f"no: {short['here']['why_not'][0]}"


def test_what_makes_it_slow_is_said(tmp_path, monkeypatch):
    path = write_llama(tmp_path / "m.gguf", formats={"default": "F16"}, **SHAPE)
    monkeypatch.setattr(native_build, "obstacle", lambda: None)
    monkeypatch.setattr(inspection, "running_if_built", lambda: None)
    monkeypatch.delitem(FIELDS, "F16")  # as if it had no native kernel
    assert rows(summary_text(inspection.inspect(path)))["runs here"] == "yes, but slowly; the xla kernels read F16"
    for module in (native_build, inspection):
        monkeypatch.setattr(module, "obstacle", lambda: "c++ failed: no such vector")
    why = "c++ failed: no such vector; the xla kernels run"
    assert rows(summary_text(inspection.inspect(path)))["runs here"] == f"yes, but slowly; {why}"
    named = rows(summary_text(inspection.inspect(path)))
    assert (named["chat template"], named["quantization"][:10]) == ("none: it continues texts", "F16: F16 x")


@pytest.mark.parametrize(
    ("count", "words"),
    [(999_600_000, "1 billion"), (999_400_000, "999 million"), (1_234_000, "1.23 million"), (999_400, "999,400")],
)
def test_parameters_are_counted_in_three_digits(file, count, words):
    report = inspection.inspect(file) | {"parameters": count}
    assert rows(summary_text(report))["parameters"] == words


def test_no_architecture_is_no_line(file):
    report = inspection.inspect(file) | {"architecture": None, "hyperparameters": {}}
    assert "architecture" not in rows(summary_text(report))


def test_names_of_recipes_are_ggufs():
    theirs = {each.value: each.name.removeprefix("ALL_").removeprefix("MOSTLY_") for each in gguf.LlamaFileType}
    del theirs[gguf.LlamaFileType.GUESSED.value]
    assert theirs == FILE_TYPES
