"""Sandboxes that stay: they answer as new ones do, and nothing of a render is left for the next one."""

import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
from processes import children, gone

from packlight.model.text import chat, sandboxes
from packlight.model.text.chat import ChatTemplateError, make_prompt

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts processes and descriptors in /proc")

TALK = (
    "{% macro said(m) %}{{ ns.mark }}[{{ m.role | upper }}]{{ m.content | trim }}{% endmacro %}"
    "{% set ns = namespace(mark='<s>', seen=[]) %}{% for m in messages %}{{ said(m) }}{% set ns.mark = loop.index %}"
    "{% endfor %}{{ tools | tojson }}{{ strftime_now('%Y') }}{{ more.at if more else '' }}"
)


class Pool(sandboxes._Pool):
    """One in which the first render starts a sandbox that stays, or none ever."""

    def __init__(self, stay: bool):
        super().__init__()
        self.stay = stay

    def has_met(self, opening):
        return self.stay

    def pids(self):
        """Of the sandboxes that no thread uses."""
        return [sandbox._process.pid for sandbox in self._free if sandbox]


@pytest.fixture
def pool(monkeypatch):
    pool = Pool(stay=True)
    monkeypatch.setattr(sandboxes, "_POOL", pool)
    yield pool
    pool.close()


def fresh(template, messages, **variables):
    """The prompt, or the error, that a process of its own makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandboxes, "_POOL", Pool(stay=False))
        return made(template, messages, **variables)


def made(template, messages, **variables):
    try:
        return make_prompt(template, messages, **variables)
    except ChatTemplateError as error:
        return str(error)


def said(text):
    return [{"role": "user", "content": text}]


def job(text):
    """The line that asks for a render of a message."""
    return json.dumps({"variables": {"messages": said(text)}, "now": None})


def opened(process):
    """What a process has open; nothing if it is at its end, as the copy is that gave the last answer."""
    with contextlib.suppress(OSError):
        return [os.readlink(path) for path in pathlib.Path(f"/proc/{process}/fd").iterdir()]
    return []


def at_rest(pid):
    """What a sandbox and its waiting copy hold open; and how much is open here and there, and how many processes.

    Two looks must agree: after an answer one copy ends and the next begins.
    """
    until, last = time.monotonic() + 10, None
    while time.monotonic() < until:
        family, held = children(os.getpid()), [opened(each) for each in (pid, *children(pid))]
        sockets = [sum(name.startswith("socket:") for name in names) for names in held]
        if sockets == [2, 2] and len(held[0]) == 4 and (family, held) == last:
            return held, (len(os.listdir("/proc/self/fd")), len(held[0]), len(family))
        last = family, held
        time.sleep(0.01)
    raise AssertionError(f"a sandbox and its copy hold {held}")


def resident(pid):
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])


def test_500_renders_of_one_process_are_those_of_new_ones(pool):
    """Whatever order they come in; and processes, descriptors and memory stay what they were after the first."""
    talks = (
        (said("hello"), {}),
        (said(" \N{GRINNING FACE} \0\r\n </s>") * 3, {"tools": [{"name": "é", "x": 1.5}]}),
        (said("x" * 70_000), {"strftime_now": "1999-01-01"}),  # more than is read at once
        ([*said("a"), {"role": "odd"}], {"more": {"at": "there"}}),
        ([{"role": "user", "content": {"no": "text"}}], {"tools": []}),
    )
    expected = [fresh(TALK, messages, **told) for messages, told in talks]
    assert len({str(text) for text in expected}) == len(talks)
    with socket.socket() as ours:
        ours.set_inheritable(True)  # a server's, which a template's process must not keep open
        assert made(TALK, said("first"))
        (pid,) = pool.pids()
        held, before = at_rest(pid)
        assert os.readlink(f"/proc/self/fd/{ours.fileno()}") not in itertools.chain(*held)
        memory = resident(pid)
        for i in range(500):
            at = i * i % 7 % 5
            messages, told = talks[at]
            assert made(TALK, messages, **told) == expected[at], i
        assert pool.pids() == [pid]
        assert at_rest(pid)[1] == before
    assert resident(pid) - memory < 256  # pages


# A sandbox with holes: its templates can leave a secret wherever Python lets them, sleep, and crash.
HOLES = """
import builtins, os, sys, time
sys.path.insert(0, {source!r})
from packlight.model.text import chat_environment, chat_sandbox, provenance
made, kept = chat_environment.ChatEnvironment.__init__, {{}}

def with_holes(self, now):
    made(self, now)
    places = {{
        "an object": kept, "globals": self.globals, "filters": self.filters, "texts": self._texts,
        "modules": sys.modules, "builtins": vars(builtins), "a module": vars(provenance), "environment": vars(self),
    }}
    def put(place):
        found = places[str(place)].get("secret", "nothing")
        places[str(place)]["secret"] = "a secret"
        return found
    def burn(seconds):
        until = time.process_time() + seconds
        while time.process_time() < until:
            pass
        return "burnt"
    def crash():
        os.kill(os.getpid(), 9)
    self.globals |= {{"put": put, "sleep": time.sleep, "crash": crash, "burn": burn, "places": list(places)}}

chat_environment.ChatEnvironment.__init__ = with_holes
chat_sandbox.main()
"""
HOLED = (
    "{% set to = messages[0].content %}{% if to == 'sleep' %}{{ sleep(60) }}{% elif to == 'crash' %}{{ crash() }}"
    "{% elif to == 'burn' %}{{ burn(0.6) }}{% elif to == 'places' %}{{ places | join(',') }}"
    "{% else %}{{ put(to) }}{% endif %}"
)


@pytest.fixture
def holes(pool, tmp_path, monkeypatch):
    source = pathlib.Path(chat.__file__).parents[3]
    (tmp_path / "holes.py").write_text(HOLES.format(source=str(source)))
    monkeypatch.setattr(sandboxes, "SANDBOX", tmp_path / "holes.py")
    return pool


def test_nothing_that_a_template_changes_reaches_the_next_render(holes):
    """Were jinja2's sandbox no sandbox, a template still could leave nothing behind."""
    places = made(HOLED, said("places")).text.split(",")
    pids = holes.pids()
    assert len(places) == 8
    for place in places * 2:
        assert made(HOLED, said(place)).text == "nothing"
    assert holes.pids() == pids


def test_a_template_that_crashes_or_hangs_is_one_error_and_the_next_render_is_right(holes):
    """The clock, too, is the caller's: a template that only waits costs no processor time."""
    assert made(HOLED, said("globals")).text == "nothing"
    (pid,) = holes.pids()
    assert made(HOLED, said("crash")) == "chat template: it does not end, or needs too much memory"
    assert (holes.pids(), gone([pid])) == ([], True)
    assert made(HOLED, said("globals")).text == "nothing"
    (pid,) = holes.pids()
    pids = [pid, *children(pid)]
    with pytest.raises(TimeoutError):
        sandboxes.answer(holes._free[-1]._for[0], job("sleep"), 0.3)
    assert (holes.pids(), gone(pids)) == ([], True)
    assert made(HOLED, said("globals")).text == "nothing"


def test_each_render_has_its_own_processor_time(holes):
    opening = json.dumps({"template": HOLED, "seconds": 1, "bytes": chat.MEMORY, "most": chat.MOST})
    for _ in range(2):
        assert json.loads(sandboxes.answer(opening, job("burn"), 60))["text"] == "burnt"
        assert holes.pids()


def test_a_sandbox_that_died_while_nobody_asked_is_replaced(pool):
    assert made(TALK, said("x")) == (expected := fresh(TALK, said("x")))
    os.kill(pid := pool.pids()[0], signal.SIGKILL)
    assert gone([pid])
    assert made(TALK, said("x")) == expected


BOMBS = (
    "{% set to = messages[0].content %}"
    "{% if to == 'time' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    "{% elif to == 'memory' %}{{ 'x' * 99999999999 }}"
    "{% elif to == 'growth' %}{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}"
    "{% endfor %}"
    "{% elif to == 'output' %}{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}"
    "{% elif to == 'refusal' %}{{ raise_exception('no') }}"
    "{% elif to == 'recursion' %}{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"
    "{% endif %}done"
)


def test_a_bound_that_is_passed_gives_the_line_of_a_new_process_and_the_next_render_is_right(pool, monkeypatch):
    for to in ("memory", "time", "growth", "output", "refusal", "recursion"):
        seconds = 1 if to == "time" else 30  # a slow machine takes more than one to fill its memory
        opening = json.dumps({"template": BOMBS, "seconds": seconds, "bytes": chat.MEMORY, "most": chat.MOST})
        lines = []
        for stay in (False, True):
            pool.stay = stay
            lines.append(sandboxes.answer(opening, job(to), 60))
        assert lines[0] == lines[1]
        assert (lines[0] == b"") == (to == "time")
        assert json.loads(sandboxes.answer(opening, job("x"), 60))["text"] == "done"


def test_templates_that_fail_to_compile_are_the_same_error(pool):
    for template in ("{% if %}", "{% if 1 %}" * 5000 + "{% endif %}" * 5000):
        assert made(template, said("x")) == fresh(template, said("x"))
        assert str(made(template, said("x"))).startswith("chat template: ")


def test_a_process_has_one_template_one_time_zone_and_so_many_renders(pool, monkeypatch):
    monkeypatch.setattr(sandboxes, "RENDERS", 3)
    monkeypatch.setattr(sandboxes, "STAYING", 1)
    pool.__init__(stay=True)
    used = []
    for template in ("a{{ 1 }}", "b{{ 2 }}"):
        for _ in range(3):
            assert made(template, said("x")).text == template[0] + template[4]
            used += pool.pids()
    assert (len(used), len(set(used))) == (4, 2)  # which after its third render is gone
    hours = []
    for zone in ("ABC", "ABC-5"):
        monkeypatch.setenv("TZ", zone)
        hours.append(int(made("{{ strftime_now('%H') }}", said("x")).text))
    assert (hours[1] - hours[0]) % 24 in (5, 6)  # the latter where an hour ended between them


def test_threads_have_a_process_each_as_long_as_there_are_any(pool):
    def render(i):
        return made(TALK, said(f"number {i}"), tools=[i]).text, pool.pids()

    expected = fresh(TALK, said("number {}"), tools=["{}"]).text.replace('"', "")
    with concurrent.futures.ThreadPoolExecutor(5) as threads:
        found = list(threads.map(render, range(100)))
    assert [text for text, _ in found] == [expected.replace("{}", str(i)) for i in range(100)]
    assert len({pid for _, pids in found for pid in pids} | {*pool.pids()}) == sandboxes.STAYING


ENDED = """
import os, sys, pathlib, threading
from packlight.model.text import sandboxes
from packlight.model.text.chat import render
def children():
    return len([*pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()])
TALK = "{% for i in range(messages[0].content) %}{% for j in range(99999) %}{% endfor %}{% endfor %}" "done"
told = [{"role": "user", "content": 0}]
counts = [(render(TALK, told), children()) for _ in range(3)]
assert counts == [("done", 0), ("done", 1), ("done", 1)], counts
ours = sandboxes._POOL._free[-1]._process.pid
if (copy := os.fork()) == 0:  # two that talk to one sandbox would have each other's answers
    assert [render(TALK, told) for _ in range(3)] == ["done"] * 3
    assert sandboxes._POOL._free[-1]._process.pid != ours
    sys.exit()
assert os.waitpid(copy, 0)[1] == 0
assert render(TALK, told) == "done"
print(ours, flush=True)
if sys.argv[1] == "works":
    render(TALK, [{"role": "user", "content": 99999}])
"""


@pytest.mark.parametrize("end", ["exits", "works"])
def test_a_sandbox_ends_with_its_caller(end):
    """With one that exits, without a word; and with one that is killed, though a template is at work."""
    command = [sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning", "-c", ENDED, end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as caller:
        pid = int(caller.stdout.readline() or caller.stderr.read())
        if end == "works":
            until = time.monotonic() + 60
            while not any(busy(child) for child in children(pid)):
                assert time.monotonic() < until
                time.sleep(0.01)
            pids = [pid, *children(pid)]
            caller.kill()
        else:
            pids = [pid]
        assert caller.communicate(timeout=60) == (b"", b"")
        assert gone(pids, 2)  # well before the 5 s of a template


def busy(pid):
    """Whether a process worked for a while; False of one that ended."""
    with contextlib.suppress(OSError):
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) > 0.1 * os.sysconf("SC_CLK_TCK")
    return False
