"""Help, topics and the man page: made of the tables, complete, and as wide as a terminal."""

import re
import shutil
import subprocess

import pytest
from running import packlight, succeed

from packlight.cli import help as pages
from packlight.cli.commands import COMMANDS
from packlight.cli.flags import FLAGS, SAMPLING, STRUCTURED


def flags_in(text: str) -> set[str]:
    """The flags that are explained, each at the start of a line."""
    return set(re.findall(r"^  (?:-\w, |    )--(\w+)", text, re.MULTILINE))


@pytest.mark.parametrize("line", ["--help", "-h", "help", "help --help"])
def test_the_overview_fits_a_screen_and_names_every_command(line):
    text = succeed(*line.split()).stdout
    assert text == pages.overview()
    assert len(text.splitlines()) <= 30
    assert list(re.findall(r"^  ([a-z]+) ", text, re.MULTILINE)) == [*COMMANDS]
    assert flags_in(text) == {*pages.USUAL}


@pytest.mark.parametrize("page", ["overview", *COMMANDS, *pages.TOPICS, "whole"])
def test_no_line_is_wider_than_a_terminal(page):
    text = {"overview": pages.overview, "whole": pages.whole}.get(page, lambda: pages.explained(page))()
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_a_commands_help_is_short_and_helpfull_has_all(command):
    short, full = succeed(command.name, "--help").stdout, succeed(command.name, "--helpfull").stdout
    assert short == succeed("help", command.name).stdout
    assert len(short.splitlines()) <= 36
    assert flags_in(full) == {*command.takes} - {"action"}
    assert flags_in(short) <= flags_in(full)
    left = flags_in(full) - flags_in(short) - {"helpfull"}
    topics = re.findall(r"packlight help (.*)", short)[0].split(" | ")
    assert left <= {name for topic in topics for name in pages.TOPICS[topic].flags}


def test_samplers_are_explained_once():
    assert flags_in(succeed("help", "sampling").stdout) | {*STRUCTURED} == {*SAMPLING}
    assert "--top_k" not in pages.overview() + pages.explained("generate") + pages.explained("chat")
    assert flags_in(succeed("help", "--helpfull").stdout) == {*FLAGS} - {"action"}
    assert succeed("--helpfull").stdout == pages.whole()


def test_a_page_that_is_none_names_its_neighbour():
    done = packlight("help", "samplign")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing is called 'samplign'; did you mean 'sampling'?; there are: generate, " in done.stderr


def test_the_man_page_has_every_command_and_flag():
    text = succeed("help", "--man").stdout
    for name in [*COMMANDS, *(f"\\-\\-{name}" for name in FLAGS if name != "action")]:
        assert re.search(rf"^\.B (\\-\w, )?{re.escape(name)}( |$)", text, re.MULTILINE), name


@pytest.mark.skipif(not shutil.which("mandoc"), reason="needs mandoc")
def test_the_man_page_is_sound():
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning"], input=pages.man_page(), capture_output=True, text=True, check=False
    )
    assert re.fullmatch(r"mandoc: <stdin>:\d+:\d+: WARNING: missing date, using \"\": TH\n", done.stdout)
