"""Every command in the documentation runs: blocks marked `sh`, with the block marked `toml` as the config they name."""

import pathlib
import re
import shlex

import pytest
from ggufs import write_llama
from running import succeed

from packlight.bench.render import ROOT

TEXTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FOLDERS = ("bench", "common", "compile", "configs", "docs", "model", "quant", "serve", "src", "tests", "tools")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path, kind):
    return [text for marked, text in FENCE.findall(path.read_text(encoding="utf-8")) if marked == kind]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands run: a model of packed weights and one of floats."""
    made = tmp_path_factory.mktemp("docs")
    small = {"layers": 1, "embed": 256, "heads": 8, "kv_heads": 8, "ffn": 512, "vocab": 320, "context": 300}
    write_llama(made / "model.gguf", formats={"default": "Q4_K", "output": "Q6_K"}, **small)
    write_llama(made / "floats.gguf", formats={"default": "F32"}, **small)
    return made


@pytest.mark.parametrize("path", [path for path in TEXTS if blocks(path, "sh")], ids=lambda path: path.stem)
def test_commands(path, folder, monkeypatch):
    monkeypatch.setattr("running.ELSEWHERE", folder)
    for block in blocks(path, "sh"):
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "packlight"
            for argument in arguments:
                if argument.startswith("--config=") and argument.endswith(".toml"):
                    (config,) = blocks(path, "toml")
                    (folder / argument.removeprefix("--config=")).write_text(config, encoding="utf-8")
            absolute = [re.sub(r"(?<==)(?=[\w-]+\.(gguf|toml)$)", f"{folder}/", argument) for argument in arguments]
            assert succeed(*absolute).stdout


def test_links_and_files_that_are_named_exist():
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([\w./-]+)\)", text):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
        for named in re.findall(
            r"`((?:common|quant|model|compile|serve|src|configs|tests|bench|docs|tools)/[\w./-]+\.\w+)`", text
        ):
            assert (ROOT / named).exists(), f"{path.name}: {named}"


def test_error_lines_of_the_troubleshooting_are_real():
    """The parts between dots are texts of the sources."""
    folders = ("common", "model", "compile", "quant", "serve", "src")
    sources = "".join(
        path.read_text(encoding="utf-8") for folder in folders for path in pathlib.Path(ROOT, folder).rglob("*.py")
    )
    table = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").split("|---|---|")[1].split("\n\n")[0]
    for said in re.findall(r"^\| `(.*?)` ", table, re.MULTILINE):
        for part in re.split(r"\.\.\.|\bN\b|2|3|'|: cpu", said):
            assert part.strip(" :;") in sources, part
