"""Every command in the documentation runs: blocks marked `sh`, with the block marked `toml` as the config they name. So
does all Python: blocks marked `python`.
"""

import pathlib
import re
import shlex

import pytest
from ggufs import write_llama
from running import succeed
from test_structure import FLOORS

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
    chatty = {"tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    write_llama(made / "model.gguf", formats={"default": "Q4_K", "output": "Q6_K"}, extra=chatty, **small)
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


@pytest.mark.parametrize("path", [path for path in TEXTS if blocks(path, "python")], ids=lambda path: path.stem)
def test_python(path, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for block in blocks(path, "python"):
        exec(compile(block, str(path), "exec"), {})
    assert capsys.readouterr().out


def test_links_and_files_that_are_named_exist():
    for path in [*TEXTS, ROOT / "demo" / "MODEL_CARD.md"]:
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([\w./-]+)\)", text):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
        for named in re.findall(
            r"`((?:common|quant|model|compile|serve|src|configs|tests|bench|docs|tools)/[\w./-]+\.\w+)`", text
        ):
            assert (ROOT / named).exists(), f"{path.name}: {named}"


READING = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
READ = re.findall(r"^\d+\. `([^`]+)`: (.*(?:\n   .*)*)", READING, re.MULTILINE)  # (file, what is said of it)


def test_the_files_to_read_are_twelve_and_about_3500_lines():
    lines = [len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file, _ in READ]
    assert len(lines) == 12
    assert 3000 < sum(lines) < 3700, dict(zip(READ, lines, strict=True))


@pytest.mark.parametrize(("file", "text"), READ, ids=[file for file, _ in READ])
def test_what_to_look_at_is_there(file, text):
    """Names of files are checked above; every other name in an entry stands in its file."""
    source = (ROOT / file).read_text(encoding="utf-8")
    for name in re.findall(r"`([\w.]+)`", text):
        if not name.endswith(".py"):
            assert re.search(rf"\b{name.rpartition('.')[2]}\b", source), f"{file} has no {name}"


def test_central_types_are_where_the_documents_say():
    table = READING.partition("## The central types")[2].partition("\n\nThree")[0]
    rows = [row.split("|")[1:3] for row in table.splitlines() if "`" in row]
    assert len(rows) == 12
    for row in rows:
        for name, file in zip(*(re.findall(r"`([\w./]+)`", cell) for cell in row), strict=True):
            assert f"\nclass {name}" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {name}"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for path in ROOT.glob("docs/*.md"):
        assert path.name == "README.md" or f"]({path.name})" in index, path.name


def test_the_rooms_are_drawn_in_the_order_of_their_floors():
    """The drawing in docs/reading.md has the floors of test_structure, lowest first."""
    drawing = READING.partition("## The rooms of the house")[2].split("```")[1]
    drawing = re.sub(r"src/packlight/(cli|server)/", r"\1/", drawing)
    floors = [line for line in drawing.replace("src/", "").splitlines() if line[:1].strip()]
    drawn = [re.findall(r"(?:^|\s)([\w/]+)/(?=\s)", line) for line in floors]
    assert [sorted(room.replace("/", ".") for room in rooms) for rooms in drawn] == [sorted(rooms) for rooms in FLOORS]


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
