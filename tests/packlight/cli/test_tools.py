"""Commands that run no model: tokenize, cache, config."""

import fcntl
import json
import os
import re
import subprocess
import sys
import time

import pytest
from ggufs import NOISE, write_llama
from running import packlight, succeed, write_config

from packlight import Tokenizer, stored
from packlight.compile.config import CompileConfig, parse_config, read_config
from packlight.compile.origin import origin
from packlight.compile.store import Store, made_by
from packlight.quant.kernels import native_build


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("tools") / "noise.gguf", **NOISE, seed=4)


def test_tokens_are_the_tokenizers(model):
    tokenizer = Tokenizer.from_gguf(model)
    text = "</s>ab\né"
    ids = tokenizer.encode(text, parse_special=True)
    done = succeed("tokenize", model, f"--prompt={text}")
    assert done.stderr == f"{len(ids)} tokens\n"
    rows = [re.fullmatch(r" *(\d+)  '(.*)'", line) for line in done.stdout.splitlines()]
    assert [int(row[1]) for row in rows if row] == ids
    assert "".join(row[2] for row in rows if row) == "<s></s> ab\\n\\xc3\\xa9"
    report = json.loads(succeed("tokenize", model, f"--prompt={text}", "--json").stdout)
    assert (report["count"], report["token_ids"]) == (len(ids), ids)
    assert bytes(sum((token["bytes"] for token in report["tokens"]), [])) == b"<s></s> ab\n\xc3\xa9"
    assert [token["token_id"] for token in report["tokens"]] == ids


def test_a_text_to_cut_comes_from_a_flag_a_file_or_a_pipe(model, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("one\n")
    texts = [
        succeed("tokenize", model, *line, stdin=stdin).stdout
        for line, stdin in ((["-p", "one"], b""), (["-f", file], b""), ([], b"one\n"))
    ]
    assert len(set(texts)) == 1
    assert "o" in texts[0]


@pytest.mark.parametrize(("flag", "special", "parsed"), [("--noadd_special", 0, 1), ("--noparse_special", 1, 0)])
def test_special_tokens_are_put_and_read_unless_they_are_not_wanted(model, flag, special, parsed):
    report = json.loads(succeed("tokenize", model, "--prompt=</s>", flag, "--json").stdout)
    assert (report["token_ids"].count(1), report["token_ids"].count(2)) == (special, parsed)


def test_the_config_that_is_shown_is_one_and_says_where_it_comes_from(tmp_path):
    """What it writes is a config with the same values."""
    mine = tmp_path / "mine.toml"
    mine.write_text("prefill_buckets = [16]\nstore = false\nxla_options = {xla_cpu_enable_fast_math = false}\n")
    streamed = ("--weights=streamed", "--weights_budget=5000000", "--weights_ahead=1")
    text = succeed("config", "show", f"--config={mine}", "--context=64", "--kv_type=f16", "--slots=2", *streamed).stdout
    base = read_config(mine)
    shown = parse_config(text, "shown")
    assert shown == CompileConfig(
        prefill_buckets=(16,),
        store=False,
        xla_options=base.xla_options,
        context=64,
        kv_dtype="float16",
        decode_batch=(1, 2),
        weights="streamed",
        weights_budget=5_000_000,
        weights_ahead=1,
    )
    comments = dict(re.findall(r"^(\w+) = .*?  # (.*)$", text, re.MULTILINE))
    assert comments["prefill_buckets"] == comments["store"] == str(mine)
    assert (comments["context"], comments["kv_dtype"]) == ("--context", "--kv_type")
    assert (comments["weights"], comments["cache_bytes"]) == ("--weights", "default")
    assert (comments["weights_budget"], comments["weights_ahead"]) == ("--weights_budget", "--weights_ahead")
    assert (comments["decode_batch"], comments["head_rows"]) == ("--slots", "default")


def test_a_config_that_is_shown_keeps_every_character(tmp_path):
    folder = '/tmp/\N{GRINNING FACE} é "x" \x7f'
    mine = tmp_path / "mine.toml"
    mine.write_text('cache_dir = "/tmp/\N{GRINNING FACE} é \\"x\\" \\u007f"\n', encoding="utf-8")
    text = succeed("config", "show", f"--config={mine}").stdout
    assert "\N{GRINNING FACE}" in text
    assert parse_config(text, "shown").cache_dir == read_config(mine).cache_dir == folder


def test_the_config_of_a_command_without_flags(model):
    report = json.loads(succeed("config", "show", model, "--json", "--device=cpu").stdout)
    assert report["decode_batch"] == {"value": [1], "from": "one slot, as commands have it"}
    assert report["kv_dtype"] == {"value": "float16", "from": "configs/cpu.toml"}
    assert report["context"] == {"value": NOISE["context"], "from": "configs/cpu.toml"}
    assert report["cache_dir"] == {"value": "", "from": "default"}
    assert report["mesh"]["value"] == {"data": 1, "tensor": 1}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache folder of the test's own with one file of each kind that goes, and of each that stays."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = Store(tmp_path / "packlight")
    here = origin(on_cpu=True)
    store.write("a" * 64, b"machine code", here | {"step": "head[1]", "model": "llama \x1b[31m"})
    store.write("b" * 64, b"machine code", here | {"jax": "0.0.1", "sources": "0" * 16})
    store.write("c" * 64, b"machine code", here | {"cpu": "0" * 16})
    store.write("d" * 64, b"machine code")
    builds = tmp_path / "packlight" / "native"
    builds.mkdir(mode=0o700)
    own = native_build.own_build()
    if own is not None:
        own.write_bytes(b"kernels")
    (builds / f"{'e' * 32}.so").write_bytes(b"other kernels")
    (builds / f"{'f' * 32}.failed").write_bytes(b"{}")
    (builds / "build.01234567.tmp").mkdir()
    (builds / "build.01234567.tmp" / "a.o").write_bytes(b"object")
    (tmp_path / "packlight" / "history").write_text("of no concern")
    return tmp_path / "packlight"


GOING = {
    "b" * 64 + ".aot",
    "c" * 64 + ".aot",
    "d" * 64 + ".aot",
    "e" * 32 + ".so",
    "f" * 32 + ".failed",
    "build.01234567.tmp",
}


def names(folder) -> set[str]:
    return {path.name for each in (folder, folder / "native") for path in each.iterdir()}


def test_the_list_says_what_would_go_and_why(folder):
    text = succeed("cache", "list").stdout
    report = json.loads(succeed("cache", "--json").stdout)
    why = {os.path.basename(each["path"]): each["stale"] for each in report["files"]}
    assert {name for name, stale in why.items() if stale} == GOING
    assert why["b" * 64 + ".aot"] == "other sources, jax"
    assert why["c" * 64 + ".aot"] == "other CPU"
    assert why["d" * 64 + ".aot"] == "an older packlight"
    assert f"prune would remove {len(GOING)}, " in text
    assert report["bytes"] == sum(each["bytes"] for each in report["files"]) > report["prunable_bytes"] > 0
    assert re.search(
        r"^executable +packlight \S+, jax 0\.0\.1 +1 +\S+ MB +just now +goes: other sources, jax$", text, re.M
    )
    each = succeed("cache", "--verbose").stdout
    assert re.search(r"^executable +head\[1\] +llama \\x1b\[31m ", each, re.M)
    assert "\x1b" not in text + each


def test_prune_removes_what_others_left_and_nothing_else(folder):
    before = names(folder)
    assert succeed("cache", "prune", "--dry_run").stdout.startswith(f"would remove {len(GOING)} files, ")
    assert names(folder) == before
    assert succeed("cache", "prune").stdout.startswith(f"removed {len(GOING)} files, ")
    assert names(folder) == before - GOING
    assert succeed("cache", "prune").stdout.startswith("removed 0 files, 0.0 MB; ")


def test_clear_leaves_what_is_no_cache(folder):
    succeed("cache", "clear")
    assert names(folder) == {"secret", "history", "native"}


def test_what_a_living_process_holds_stays(folder):
    """A file that is being written, and kernels that run; the lock goes with the process."""
    held = [folder / "native" / "build.01234567.tmp", folder / "native" / f"{'e' * 32}.so"]
    code = (
        "import sys\nfrom packlight.common import files\n"
        "files._locked(sys.argv[1], wait=False), files.hold(sys.argv[2])\nprint('held', flush=True)\ninput()"
    )
    command = [sys.executable, "-c", code, *map(str, held)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    for action in ("prune", "clear"):
        done = succeed("cache", action)
        assert all(path.exists() for path in held)
        assert done.stderr == "2 of those that stay are in use by other processes\n"
    assert "stays: in use" in succeed("cache").stdout
    process.communicate("\n")
    succeed("cache", "prune")
    assert not any(path.exists() for path in held)


def test_kernels_that_run_are_held(tmp_path, monkeypatch):
    if not native_build.is_likely() or native_build.packaged().library:
        pytest.skip("needs kernels that are built here")
    native_build.loaded()
    path, _ = native_build.library()
    with open(path, "rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_config_names_the_folder_of_executables(folder, tmp_path):
    other = Store(tmp_path / "other")
    other.write("f" * 64, b"machine code")
    config = write_config(tmp_path / "c.toml", cache_dir=str(other.folder))
    kernels = folder / "native"
    listed = succeed("cache", f"--config={config}").stdout
    assert listed.startswith(f"{other.folder} and {kernels}: ")
    report = json.loads(succeed("cache", f"--config={config}", "--json").stdout)
    assert (report["folder"], report["kernels_folder"]) == (str(other.folder), str(kernels))
    before = len([*kernels.iterdir()])
    said = f"with these {before} in {kernels}: native kernels, which no cache_dir moves\n"
    assert succeed("cache", "clear", "--dry_run", f"--config={config}").stderr == f"would remove {said}"
    assert succeed("cache", "clear", f"--config={config}").stderr == f"removed {said}"
    assert not [*other.folder.glob("*.aot")]
    assert not [*kernels.iterdir()]
    assert (folder / f"{'a' * 64}.aot").exists()


@pytest.mark.parametrize(
    "tail", [b"MADE", b"\xff\xff\xff\xff" + b"MADE", b"[1]\x03\0\0\0MADE", b"{\x01\0\0\0MADE", b""]
)
def test_what_an_entry_says_of_itself_may_be_damaged(tmp_path, tail):
    path = tmp_path / "entry.aot"
    path.write_bytes(tail)
    assert made_by(path) is None


def test_a_file_that_goes_meanwhile_is_no_error(folder):
    files = stored.kept(CompileConfig())
    assert packlight("cache", "clear").returncode == 0
    assert stored.remove(files) == []


def test_what_a_model_leaves_in_the_store_is_this_installations(tmp_path):
    """Also one whose name is longer than what may be told of an entry."""
    model = write_llama(tmp_path / "m.gguf", **NOISE, extra={"general.name": "\N{GRINNING FACE}" * 5000})
    config = write_config(tmp_path / "c.toml", cache_dir=str(tmp_path / "store"), cpu_kernels="xla")
    succeed(f"--model={model}", f"--config={config}", "--prompt=x", "--max_tokens=1")
    began = time.time()
    entries = [each for each in stored.kept(read_config(config)) if each.kind == "executable"]
    assert {each.stale for each in entries} == {None}
    phases = sorted(each.made_by["step"].partition("[")[0] for each in entries)
    assert phases == ["copy", "decode", "head", "prefill", "score"]
    assert all(0 <= began - each.modified < 600 for each in entries)
