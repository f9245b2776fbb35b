"""Completions for three shells: each in its own shell, from the tables of commands and flags."""

import pathlib
import shutil
import subprocess

import pytest
from running import succeed

from packlight.cli import completion
from packlight.cli.commands import COMMANDS
from packlight.cli.flags import FLAGS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model and another file in it, and the scripts."""
    made = tmp_path_factory.mktemp("completion")
    for name in ("tiny.gguf", "text.txt"):
        (made / name).touch()
    for shell in completion.SCRIPTS:
        (made / shell).write_text(succeed("completion", shell).stdout)
    return made


def in_shell(shell: str, script: str, folder: pathlib.Path, *arguments: str) -> str:
    if not shutil.which(shell):
        pytest.skip(f"needs {shell}")
    done = subprocess.run([shell, "-c", script, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


BASH = """
source ./bash
shopt -u progcomp_alias
COMP_WORDS=(packlight "$@") COMP_CWORD=$#
compopt() { :; }
_packlight
printf '%s\\n' "${COMPREPLY[@]}"
"""
CASES = [
    # what is typed, in bash's words; what must be offered, what must not
    (["gen"], {"generate"}, {"tiny.gguf", "chat"}),
    ([""], {*COMMANDS, "help", "version", "tiny.gguf"}, {"text.txt"}),
    (["inspect", "--"], {"--model", "--json", "--verbose", "--help"}, {"--temperature", "--action"}),
    (["generate", "--te"], {"--temperature"}, {"--top_k"}),
    (["--te"], {"--temperature"}, set()),
    (["cache", ""], {"list", "prune", "clear"}, {"text.txt"}),
    (["config", "s"], {"show"}, {"text.txt"}),
    (["completion", ""], {"bash", "zsh", "fish"}, {"text.txt"}),
    (["help", "sam"], {"sampling"}, {"generate"}),
    (["inspect", "--model", "=", "t"], {"tiny.gguf"}, {"text.txt"}),
    (["inspect", "-m", ""], {"tiny.gguf"}, {"text.txt"}),
    (["embed", "--file", "=", ""], {"text.txt", "tiny.gguf"}, set()),
    (["inspect", "ti"], {"tiny.gguf"}, {"text.txt"}),
]


@pytest.mark.parametrize(("words", "offered", "not_offered"), CASES, ids=[" ".join(case[0]) for case in CASES])
def test_bash_offers_what_belongs_there(folder, words, offered, not_offered):
    found = set(in_shell("bash", BASH, folder, "bash", *words).splitlines())
    assert offered <= found
    assert not found & not_offered


@pytest.mark.parametrize("shell", completion.SCRIPTS)
def test_the_script_is_sound(folder, shell):
    assert in_shell(shell, f"{shell} -n {shell}", folder) == ""


@pytest.mark.parametrize(
    ("line", "offered", "not_offered"),
    [
        ("packlight gen", {"generate"}, {"chat"}),
        ("packlight cache ", {"list", "prune", "clear"}, {"text.txt"}),
        ("packlight generate --te", {"--temperature"}, set()),
        ("packlight inspect --te", set(), {"--temperature"}),
        ("packlight help sam", {"sampling"}, set()),
        ("packlight inspect t", {"tiny.gguf"}, set()),
    ],
)
def test_fish_offers_what_belongs_there(folder, line, offered, not_offered):
    lines = in_shell("fish", f"source ./fish; complete -C '{line}'", folder).splitlines()
    found = {each.partition("\t")[0] for each in lines}
    assert offered <= found
    assert not found & not_offered


def test_zsh_takes_the_script(folder):
    """What it offers is seen at a terminal only: here, that it loads and belongs to the command."""
    script = "autoload -Uz compinit; compinit -D -u; source ./zsh; print $_comps[packlight]"
    assert in_shell("zsh", script, folder) == "_packlight\n"


def test_flags_that_name_files_are_flags():
    assert {*completion.MODELS, *completion.FILES} <= {*FLAGS}
