"""What is said beside the product: --quiet, --verbose, --log_file, colours, bars and what stands in their place."""

import contextlib
import io
import re
import time
from collections.abc import Iterator

import pytest
from ggufs import NOISE, write_llama
from running import packlight, succeed, write_config

from packlight.cli import messages, terminal
from packlight.common import progress


class Terminal(io.StringIO):
    """A stream that says of itself that it is one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def coloured(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


@contextlib.contextmanager
def a_screen() -> Iterator[Terminal]:
    """stdout and stderr as a terminal."""
    with contextlib.redirect_stdout(Terminal()) as screen, contextlib.redirect_stderr(screen):
        yield screen


def waits_for(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    model = write_llama(folder / "noise.gguf", **NOISE, seed=4, extra={"llama.rope.scaling.finetuned": True})
    config = write_config(folder / "c.toml", cpu_kernels="xla")
    return (f"--model={model}", f"--config={config}", "--prompt=x", "--max_tokens=4", "--temperature=0")


def logged(path) -> list[str]:
    lines = path.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ", line) for line in lines)
    return [line[24:] for line in lines]


def test_quiet_leaves_the_answer_and_the_log_has_the_rest(flags, tmp_path):
    usual, log = succeed(*flags), tmp_path / "log.txt"
    quiet = succeed(*flags, "--quiet", f"--log_file={log}")
    assert (quiet.stdout, quiet.stderr) == (usual.stdout, "")
    said = [re.sub(r"[\d.,]+", "N", line) for line in usual.stderr.splitlines()]
    assert [re.sub(r"[\d.,]+", "N", line) for line in logged(log)] == said
    assert [line.partition(" ")[0] for line in said if line.startswith("warning")] == ["warning:"]


def test_verbose_shows_the_plan_in_full(flags):
    said = succeed(*flags, "-v").stderr
    usual = [re.sub(r"[\d.,]+", "N", line) for line in succeed(*flags).stderr.splitlines()]
    lines = [re.sub(r"[\d.,]+", "N", line) for line in said.splitlines()]
    assert [line for line in lines if line in usual] == usual
    assert len(re.findall(r"^executable (?:prefill|head|decode)\[.*\]: from the store in ", said, re.M)) == 3
    assert re.search(r"^tensor blk.0.attn_q.weight: Q8_0, read by xla, layout ggml$", said, re.M)
    assert re.search(r"^config: prefill_buckets = \(16,\)$", said, re.M)


@pytest.mark.parametrize("flag", ["--quiet", "--noverbose"])
def test_errors_are_said_in_any_case(flag, tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("2026-01-01 00:00:00.000 of an earlier run\n")
    done = packlight("--model=absent.gguf", "--prompt=x", flag, f"--log_file={log}")
    assert done.returncode == 2
    assert re.fullmatch("error: absent.gguf: .*\n", done.stderr)
    assert logged(log) == ["of an earlier run", done.stderr.removesuffix("\n")]


def test_what_is_said_before_the_flags_are_read_waits_for_them(tmp_path):
    line = ("inspect", "-ngl", "99", "--json")
    assert "-ngl changes nothing" in succeed(*line).stderr
    assert succeed(*line, "--quiet").stderr == ""
    refused = packlight("inspect", "-ngl", "99", "--shoe_size=43").stderr.splitlines()
    assert [text.split(" ")[0] for text in refused] == ["-ngl", "error:"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--quiet", "--verbose"), "--quiet and --verbose exclude each other"),
        (("--log_file={}/absent/log",), "--log_file=.*/absent/log: No such file or directory"),
        (("--log_file={}",), "--log_file=.*: Is a directory"),
    ],
)
def test_where_messages_cannot_go_is_a_mistake(flags, said, tmp_path):
    done = packlight("inspect", *(flag.format(tmp_path) for flag in flags))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"error: {said}\n", done.stderr)


def test_a_full_disk_costs_the_log_and_no_more():
    done = succeed("inspect", "--log_file=/dev/full")
    assert done.stdout
    assert "warning: --log_file: No space left on device; nothing more is written there\n" in done.stderr


def test_a_fault_of_ours_is_in_the_log_too(tmp_path, monkeypatch):
    log = tmp_path / "log.txt"
    monkeypatch.setattr("packlight.inspect", lambda path: 1 // 0)
    assert "ZeroDivisionError" in packlight("inspect", f"--log_file={log}").stderr
    assert logged(log)[-1] == "ZeroDivisionError: integer division or modulo by zero"


def test_colours_are_for_terminals(coloured, monkeypatch):
    def said() -> str:
        with a_screen() as screen:
            for text in ("error: a", "warning: b", "c"):
                terminal.say(text)
        return screen.getvalue()

    assert said() == "\x1b[1;31merror:\x1b[0m a\n\x1b[33mwarning:\x1b[0m b\n\x1b[2mc\x1b[0m\n"
    for variable, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as changed:
            changed.setenv(variable, value)
            assert said() == "error: a\nwarning: b\nc\n"


def echoed(text: str) -> str:
    with a_screen() as screen:
        terminal.echo(text)
    return screen.getvalue()


def test_a_prompt_is_echoed_dimmed_and_steers_no_terminal(coloured, monkeypatch):
    assert echoed("a\x1b[31m\nb") == "\x1b[2ma\\x1b[31m\nb\x1b[0m"
    assert echoed(5000 * "x") == "\x1b[2m..." + 2000 * "x" + "\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert echoed("c") == "c"
    monkeypatch.setattr(messages.current, "quiet", True)
    assert echoed("c") == ""


def test_a_prompt_is_not_echoed_into_a_pipe(capsys):
    terminal.echo("c")
    assert capsys.readouterr().out == ""


def test_a_bar_moves_while_nothing_is_done(monkeypatch):
    monkeypatch.setattr(terminal, "TICK", 0.01)
    with a_screen() as screen:
        with terminal.Bar() as bar:
            bar.start("compile", 3, unit="step")
            waits_for(lambda: screen.getvalue().count("0/3") > 3)
            bar.advance(3)
        ended = screen.getvalue()
        time.sleep(0.05)
    assert screen.getvalue() == ended  # nothing is drawn behind its end
    assert ended.startswith("\rcompile:   0%")


def test_quiet_has_no_bar(monkeypatch):
    monkeypatch.setattr(messages.current, "quiet", True)
    with a_screen() as screen, terminal.Bar() as bar:
        bar.start("compile", 3, unit="step")
        bar.advance(3)
    assert screen.getvalue() == ""


def test_without_a_terminal_a_long_task_is_a_line_now_and_then(monkeypatch, capsys):
    with terminal.Bar() as bar:
        bar.start("load", 2_000_000, unit="B", unit_scale=True, initial=250_000)
        bar.advance(250_000)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(terminal, "PATIENCE", -1.0)
        bar.advance(500_000)
        assert capsys.readouterr().err == "load: 1 of 2 MB after 0 s\n"


def test_a_task_deep_inside_is_a_line_and_a_bar():
    with a_screen() as screen:
        with progress.shown_by(terminal.show_task), progress.task("kernels", 2, "file", "building") as advance:
            advance(1)
            waits_for(lambda: "1/2" in screen.getvalue())
        with progress.task("kernels", 2, "file", "unheard") as advance:
            advance(2)
    assert "building" in screen.getvalue().partition("\r")[0]
    assert "unheard" not in screen.getvalue()
