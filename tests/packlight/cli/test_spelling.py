"""Command lines as people type them, turned into the names of our flags; nothing is run."""

import importlib.metadata
import os

import pytest
from running import packlight

from packlight.cli import loading
from packlight.cli.commands import COMMANDS
from packlight.cli.inputs import sampling_fields
from packlight.cli.main import _parse
from packlight.cli.spelling import ALIASES, MOOT, SWITCHES, VALUES, spelled
from packlight.common.errors import ConfigError


def parsed(line, command="generate"):
    return _parse(COMMANDS[command], line.split())


@pytest.mark.parametrize(
    ("command", "line", "expected"),
    [
        (
            "generate",
            "-m m.gguf -p Hi -n 64 -c 512 -s 7 --temp 0.5",
            "model prompt max_tokens context seed temperature",
        ),
        ("generate", "m.gguf --n-predict=64 --ctx-size 512 -np 2", "model max_tokens context slots"),
        ("generate", "--max-tokens 5 --top-k=3 -t 2", "max_tokens top_k threads"),
        ("generate", "-f p.txt -ctk f16 -dev cpu", "prompt_file kv_type device"),
        (
            "generate",
            "--rope-scaling yarn --rope-scale 4 --rope-freq-base 1e6 --yarn-orig-ctx 64 --yarn-ext-factor 1",
            "rope_scaling rope_scale rope_freq_base yarn_orig_ctx yarn_ext_factor",
        ),
        (
            "serve",
            "--rope-freq-scale=0.25 --yarn-attn-factor=1 --yarn-beta-slow=1 --yarn-beta-fast=32",
            "rope_freq_scale yarn_attn_factor yarn_beta_slow yarn_beta_fast",
        ),
        ("generate", "m.gguf -md d.gguf --draft-max 3", "model draft_model speculate"),
        ("chat", "m.gguf --model-draft=d.gguf -ngld 9", "model draft_model"),
        ("generate", "m.gguf --mmap", "model weights"),
        ("serve", "m.gguf --no-mmap", "model weights"),
        ("generate", "--json --noparse-special --no-parse-special", "json parse_special"),
        ("chat", "-m m.gguf -sys kind --chat-template-file t.jinja", "model system chat_template"),
        ("inspect", "m.gguf --json", "model json"),
        ("quantize", "a.gguf b.gguf q4_k_m", "model out type"),
        ("perplexity", "-m m.gguf -f wiki.txt", "model file"),
    ],
)
def test_other_spellings_set_our_flags(command, line, expected):
    values = parsed(line, command)
    assert {name for name in values if values[name].present} == set(expected.split())


def test_a_value_stays_as_it_is():
    """Also one that looks like a flag, and one of several lines."""
    values = _parse(COMMANDS["generate"], ["-p", "--top-k 5\n-n", "--stop=-m", "-s", "-1", "--max_tokens", "-1"])
    assert (values.prompt, values.stop) == ("--top-k 5\n-n", ["-m"])
    assert {name: sampling_fields(values)[name] for name in ("seed", "max_tokens")} == {
        "seed": None,
        "max_tokens": None,
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--promt=x", "unknown flag '--promt'; did you mean '--prompt'?; see packlight generate --help"),
        ("--versoin", "unknown flag '--versoin'; did you mean '--version'?"),
        ("--model=m.gguf --version", "--version stands alone"),
        ("--mmap=1", "unknown flag '--mmap'"),
        ("--zzz", "unknown flag '--zzz'; see packlight generate --help"),
        ("--undefok=zzz", "unknown flag '--undefok'"),
        ("m.gguf n.gguf", "unexpected argument 'n.gguf'"),
        ("--model=m.gguf n.gguf", "unexpected argument 'n.gguf'"),
        ("n.gguf -m m.gguf", "unexpected argument 'n.gguf' beside '-m'"),
        ("-- m.gguf", "unexpected argument '--'"),
        ("-1", "unexpected argument '-1'"),
        ("--nojson=true", "--nojson=true: --nojson takes no value; it is --json=false"),
        ("--no-parse-special=1", "--noparse_special takes no value"),
        ("--nomodel", "unknown flag '--nomodel'"),
        ("-p", "--prompt"),
        ("--top_k=x", "--top_k=x is not an integer"),
    ],
)
def test_what_is_nobodys_names_its_neighbour(line, message):
    with pytest.raises(ConfigError) as raised:
        parsed(line)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("chta", "unknown command 'chta'; did you mean 'chat'?; there are: generate"),
        ("genrate --prompt=x", "did you mean 'generate'?"),
        ("help chta", "did you mean 'chat'?"),
    ],
)
def test_a_command_that_is_none_names_its_neighbour(line, message):
    done = packlight(*line.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_file_that_is_not_there_names_its_neighbour(tmp_path):
    (tmp_path / "tiny-Q4_K_M.gguf").touch()
    done = packlight(tmp_path / "tiny-Q4_KM.gguf", "--prompt=x")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.endswith("No such file or directory; did you mean 'tiny-Q4_K_M.gguf'?\n")


@pytest.mark.parametrize("word", ["-h", "--help", "-help"])
def test_help_is_asked_for_by_a_flag_and_not_by_a_value(word):
    assert parsed(f"--prompt x {word}") is None
    assert parsed(f"--prompt {word}").prompt == word


def test_the_version():
    assert packlight("--version").stdout == f"packlight {importlib.metadata.version('packlight')}\n"


@pytest.mark.parametrize("name", MOOT)
def test_what_has_nothing_to_set_is_said_and_left_out(name, capsys):
    """With its value, where it has one."""
    written = [f"--{name.replace('_', '-')}", *([] if name in SWITCHES else ["99"]), "-n", "5"]
    assert spelled("generate", written, COMMANDS["generate"].define()) == (["--max_tokens", "5"], False)
    assert capsys.readouterr().err == f"{written[0]} changes nothing: {MOOT[name]}\n"


@pytest.mark.parametrize("word", ["on", "AUTO", "-1", "0.5", "f16", "bf16", "q8_0", "iq4_nl", "all"])
def test_a_flag_that_sets_nothing_takes_a_word_that_may_be_its_value_and_no_file(word):
    assert spelled("inspect", ["-fa", word, "m.gguf"], COMMANDS["inspect"].define()) == (["--model=m.gguf"], False)
    assert parsed("-fa m.gguf", "inspect").model == "m.gguf"
    assert parsed("-ngl q8_0.gguf --json", "inspect").model == "q8_0.gguf"


def test_every_alias_is_a_flag_of_some_command_and_hides_none():
    takes = {name for command in COMMANDS.values() for name in command.takes}
    assert {name for names in ALIASES.values() for name in names} <= takes
    assert not (ALIASES.keys() | MOOT.keys() | VALUES.keys()) & takes
    assert parsed("--mmap").weights == "mapped"
    assert parsed("--no-mmap").weights == "resident"


def test_threads_are_cores_of_this_process(monkeypatch, capsys):
    left = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: left.append(cores), raising=False)
    loading.use_threads(None)
    loading.use_threads(2)
    loading.use_threads(64)
    assert left == [[3, 5], [3, 5, 8]]
    assert capsys.readouterr().err == "--threads=64: this process may use 3 cores, and uses these\n"
    with pytest.raises(ConfigError, match="--threads=0 is less than 1"):
        loading.use_threads(0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--device=cuda", "--device=cuda is none of cpu, gpu, tpu"),
        ("--device=gpu --config=debug", "--device=gpu but the platform of --config=debug is cpu"),
    ],
)
def test_a_device_that_cannot_be_is_named(line, message):
    with pytest.raises(ConfigError) as raised:
        loading.prepared_from(parsed(line))
    assert str(raised.value) == message


def test_a_device_is_a_platforms_config():
    assert loading.prepared_from(parsed("--device=cpu")).named.platform == "cpu"
