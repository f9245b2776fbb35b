"""`packlight serve` as a command: what it refuses before it reads anything, and one life of it."""

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from ggufs import NOISE, write_llama
from raw_http import until
from running import COMMAND, packlight, write_config

from packlight.cli.commands.serve import COMMAND as SERVE
from packlight.cli.commands.serve import settings_of


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--port=65536", "--port=65536 is none of 0 to 65535"),
        ("--port=x", "flag --port=x is not an integer"),
        ("--host=no.such.host.invalid", "--host=no.such.host.invalid: "),
        ("--allowed_hosts=http://a", "--allowed_hosts=http://a is no name of a host"),
        ("--cors_origins=example.org", "--cors_origins=example.org is no origin"),
        ("--unknown_fields=ignore", "--unknown_fields=ignore is none of error, warn"),
        ("--max_queue=-1", "--max_queue=-1 is less than 0"),
        ("--drain_seconds=nan", "--drain_seconds=nan is no number of seconds"),
        ("--queue_timeout=-1", "--queue_timeout=-1.0 is no number of seconds"),
        ("--temperature=-1", "temperature must be finite"),
        ("--api_key_file=/nowhere", "--api_key_file=/nowhere: No such file or directory"),
        ("--api-key=secret", "unknown flag '--api-key'; did you mean '--api_key_file'?"),
    ],
)
def test_a_mistake_is_one_line(flag, said):
    done = packlight("serve", flag, "--model=/nowhere.gguf")
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert line.startswith("error: ")
    assert said in line


def test_a_missing_model_ends_it():
    done = packlight("serve", "--port=0", "--model=/nowhere.gguf")
    first, last = done.stderr.splitlines()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+: loading", first)
    assert (done.returncode, last) == (2, "error: /nowhere.gguf: cannot open: No such file or directory")


@pytest.mark.parametrize("missing", ["uvicorn", "starlette", "h11", "msgspec", "prometheus_client"])
def test_a_missing_extra_is_named(monkeypatch, missing):
    for name in [*sys.modules]:
        if name.startswith("packlight.server") or name.split(".")[0] == missing:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    done = packlight("serve", "--port=0", "--model=/nowhere.gguf")
    assert done.stderr == "error: packlight serve needs the extra 'serve': pip install 'packlight[serve]'\n"


def test_flags_say_how_it_is_served(monkeypatch):
    monkeypatch.setenv("PACKLIGHT_API_KEY", "key")
    values = SERVE.define()
    values(["serve", "--alias=tiny", "--allowed_hosts=a,b", "--unknown_fields=warn", "--temperature=0", "--port=0"])
    settings = settings_of(values)
    assert settings.keys.open(b"key")
    assert "PACKLIGHT_API_KEY" not in os.environ
    assert (settings.names, settings.allowed_hosts, settings.cors_origins) == (("tiny",), ("a", "b"), ())
    assert (settings.warn_unknown, settings.log_prompts, settings.defaults) == (True, False, {"temperature": 0.0})
    assert (settings.limits.drain_seconds, settings.limits.queue_timeout) == (30, 600)


def test_a_life(tmp_path):
    """Health from the beginning on, until a signal drains it."""
    model = write_llama(tmp_path / "noise.gguf", **NOISE)
    words = ["serve", f"--model={model}", f"--config={write_config(tmp_path / 'small.toml')}", "--port=0"]
    process = subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    address = re.fullmatch(r"(http://127\.0\.0\.1:\d+): loading\n", process.stderr.readline())
    assert address

    def health() -> int:
        try:
            return urllib.request.urlopen(f"{address[1]}/health", timeout=10).status
        except urllib.error.HTTPError as error:
            return error.code

    assert health() in (200, 503)
    until(lambda: health() == 200, seconds=120)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "slots 2" in text  # the config's
    assert f"{address[1]}: ready" in text


def test_a_prefix_cache_fits_what_is_free():
    from packlight import demo
    from packlight.prepared import prepare

    plain = prepare(demo.MODEL, slots=2)
    server = plain.with_prefix_cache()
    assert 0 < server.config.prefix_cache_bytes <= 2 << 30
    assert server.memory.total == plain.memory.total + server.config.prefix_cache_bytes
    assert plain.with_prefix_cache(0).config.prefix_cache_bytes == 0
    assert plain.with_prefix_cache(5 << 20).memory.prefixes == 5 << 20


@pytest.mark.parametrize(("room", "slots"), [(1 << 40, 4), (0, 4), (2.5, 2), (1.5, 1)])
def test_slots_follow_the_memory(room, slots, monkeypatch, capsys):
    """room: slots that there is memory for; where not even one fits, loading says what would."""
    from packlight import demo
    from packlight.cli.commands.serve import _fewer_slots
    from packlight.compile.memory import Limit
    from packlight.prepared import prepare

    prepared = prepare(demo.MODEL, slots=4)
    one = prepare(demo.MODEL, slots=1).memory
    free = one.total + int((room - 1) * one.cache)
    monkeypatch.setattr("packlight.prepared.host_limit", lambda devices=1: Limit(free, "free memory"))
    assert _fewer_slots(prepared).config.slots == slots
    assert ("do not fit" in capsys.readouterr().err) == (slots < 4)
