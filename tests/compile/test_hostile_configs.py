"""Configs that are damaged or made to hurt: one typed line that names file and key, or a config whose plan is sound;
within a second, in bounded memory.
"""

import importlib.resources
import os
import pathlib
import random
import re
import time

import pytest
from running import grown

from packlight.common.errors import ConfigError
from packlight.compile.config import MAX_BUCKETS, MAX_LINE, MAX_TEXT, SHIPPED, parse_config, read_config
from packlight.compile.plan import make_plan

DEEP = ".".join("a" * (MAX_LINE // 2 - 4))  # a dotted key, of which tomllib takes the square

# Texts, and what the refusal of each must hold.
HOSTILE = {
    "decimal digits": ("context = " + "9" * 480, "'context' is 999.*; it is an integer >= 0, < 2147483648"),
    "hexadecimal digits": ("memory_limit = 0x" + "f" * 480, r"'memory_limit' is \d+\.\.\.; it is an integer"),
    "more digits than Python converts": ("context = " + "9" * 5000, "line 1 is longer than the 500 characters"),
    "a huge float": ("context = 1e400", "'context' is inf"),
    "nan": ("head_rows = nan", "'head_rows' is nan"),
    "minus infinity": ("decode_batch = [-inf]", "'decode_batch' is -inf"),
    "a negative number": ("memory_limit = -1", "'memory_limit' is -1; it is an integer >= 0"),
    "a date": ("context = 1979-05-27", r"'context' is datetime\.date"),
    "a date that does not exist": ("context = 2020-13-45", "Expected newline|date"),
    "an hour that does not exist": ("context = 25:61:61", "line 1"),
    "the same key twice": ("context = 1\ncontext = 2", "Cannot overwrite"),
    "a key that is a table and a value": ("mesh = 1\n[mesh]\ndata = 1", "Cannot declare|Cannot overwrite"),
    "a NUL": ("context = 1\0", "line 1"),
    "a NUL in a name": ('platform = "cpu\\u0000"', r"'platform' is 'cpu\\x00'; it is one of"),
    "escape codes in a name": ('"\\u001b[31m" = 1', r"unknown key '\\x1b\[31m'"),
    "escape codes in a value": ('kv_dtype = "\\u001b[31m"', r"'kv_dtype' is '\\x1b\[31m'"),
    "a long name": ("k" * 480 + " = 1", r"unknown key 'kkk.*\.\.\.; known: platform"),
    "a long line": ("#" * (MAX_LINE + 1), "line 1 is longer"),
    "a long text": ("#\n" * MAX_TEXT, "longer than the 16,384 characters"),
    "nested arrays": ("x = " + "[" * 490, "nested too deeply|Invalid value"),
    "nested arrays over lines": ("x = " + "[\n" * 8000, "nested too deeply|Invalid value"),
    "nested tables": ("x = " + "{a=" * 160, "nested too deeply|Invalid"),
    "a deep key": (f"{DEEP} = 1", "unknown key 'a'"),
    "deep keys": ("".join(f"b{i}.{DEEP} = 1\n" for i in range(32)), "unknown key 'b0'"),
    "tables under a deep key": (f"[{DEEP}]\n" + f"{'.'.join('b' * 20)}%d = 1\n" * 300 % (*range(300),), "unknown key"),
    "many keys": ("".join(f"a{i}=1\n" for i in range(1800)), "unknown key 'a0'"),
    "many tables": ("".join(f"[a{i}.b]\n" for i in range(1400)), "unknown key 'a0'"),
    "many buckets": (f"decode_batch = [{', '.join(map(str, range(1, 100)))}]", f"99 values, more than {MAX_BUCKETS}"),
    "many devices": ("mesh = {data = 1, tensor = 2147483647}", "'mesh' means 2147483647 devices, more than 1024"),
    "a mesh of text": ('mesh = {data = "1"}', "'mesh.data' is '1'"),
    "a mesh of meshes": ("[[mesh]]\n" * 900, "'mesh' is a table of data and tensor"),
    "a file for XLA to write": ('xla_options = {xla_dump_to = "/tmp"}', "'xla_dump_to' is '/tmp'; it is a number"),
    "a program for XLA to run": ('xla_options = {xla_gpu_cuda_data_dir = "."}', "'xla_gpu_cuda_data_dir' is"),
}


def outcome(path):
    """None when the file is a config whose plan is bounded, else the error; anything but one printable line that names
    the file fails the test.
    """
    began, error = time.process_time(), None
    try:
        plan = make_plan(read_config(path), 4096)
        assert 3 <= len(plan.steps) <= 2 * MAX_BUCKETS * (MAX_BUCKETS + 1) + 4
        assert max(key.length for key in plan.steps) == plan.capacity
    except ConfigError as caught:
        error = str(caught)
    assert time.process_time() - began < 1
    if error is not None:
        assert error.startswith((f"config {path}: ", "config key 'context' is "))  # the latter from the plan
        assert error.isprintable()
        assert len(error.partition("; known: ")[0]) < 300  # behind it stand all keys
    return error


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_config_is_one_line(name, tmp_path):
    text, words = HOSTILE[name]
    (tmp_path / "c.toml").write_text(text)
    error = outcome(tmp_path / "c.toml")
    assert error is not None
    assert re.search(words, error), error


def test_what_is_large_and_fits_its_bounds_is_a_plan(tmp_path):
    most = [*range(128, 128 * (MAX_BUCKETS + 1), 128)]
    (tmp_path / "c.toml").write_text(f"prefill_buckets = {most}\ndecode_batch = {most}\nlength_buckets = {most}")
    assert outcome(tmp_path / "c.toml") is None
    plan = make_plan(parse_config(f"head_rows = {2**31 - 1}\nprefill_buckets = [{2**31 - 1}]", "x"), 512)
    assert (plan.head_rows, plan.prefill_buckets) == ((1, 512), (512,))


@pytest.mark.parametrize("name", ["fifo", "device", "sparse", "binary", "line\nend\x1b"])
def test_a_file_that_is_no_config_is_one_line(name, tmp_path):
    path = tmp_path / name
    match name:
        case "fifo":  # nobody writes to it
            os.mkfifo(path)
            words = "fifo: a pipe, socket or device, not a regular file"
        case "device":
            path, words = pathlib.Path("/dev/zero"), "/dev/zero: a pipe, socket or device"
        case "sparse":
            path.touch()
            os.truncate(path, 1 << 40)
            words = "sparse: longer than"
        case "binary":
            path.write_bytes(b"context = 1 \xff")
            words = "binary: not a text file"
        case _:
            words = r"line\\nend\\x1b: No such file"
    began = time.process_time()
    with pytest.raises(ConfigError, match=words) as caught:
        read_config(path)
    assert time.process_time() - began < 1
    assert str(caught.value).isprintable()


def test_memory_is_bounded():
    """All of the above and a deeper key, in one process."""
    work = """
for text in sys.stdin.read().split("\x1e"):
    try: parse_config(text, "x")
    except ConfigError: pass
"""
    imports = "from packlight.compile.config import parse_config; from packlight.common.errors import ConfigError"
    texts = [*(text for text, _ in HOSTILE.values()), ".".join("a" * 100_000) + " = 1"]
    assert grown(imports, work, stdin="\x1e".join(texts)) < 100_000  # measured 11,000


SHIPPED_CONFIGS = [(importlib.resources.files("packlight.configs") / f"{name}.toml").read_bytes() for name in SHIPPED]
VALUES = [
    "0",
    "-1",
    "1",
    "true",
    "''",
    '"cpu"',
    "[]",
    "[1]",
    "[[1]]",
    "{}",
    "{data = 2}",
    "{a = 1}",
    "1.5",
    "nan",
    "-inf",
]
VALUES += ["1e999", "2147483648", "9223372036854775808", "-" + "9" * 400, "0x" + "f" * 400, "1979-05-27T07:32:00Z"]
VALUES += [
    "[" * 60 + "]" * 60,
    "{a=" * 60 + "1" + "}" * 60,
    "'" + "x" * 450 + "'",
    '"\\u0000"',
    '"\\ud800"',
    "\0",
    "é",
    '"""',
]
LINES = [
    "",
    "[mesh]",
    "[[mesh]]",
    "[xla_options]",
    "data = 3",
    "tensor = -1",
    "context = 1",
    "a.b.c = 1",
    "= 1",
    "]",
    "\r",
]


def damaged_bytes(raw, rng):
    at, size = rng.randrange(len(raw) + 1), rng.randint(1, 12)
    match rng.randrange(3):
        case 0:
            return raw[:at] + rng.randbytes(1) + raw[at + 1 :]
        case 1:
            return raw[:at] + raw[at + size :]
        case _:
            return raw[: at + size] + raw[at:]


def damaged_lines(lines, rng):
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    key, equals, value = lines[at].partition(b" = ")
    match rng.randrange(6):
        case 0:
            changed = [lines[other]]
        case 1:
            changed = [lines[at], rng.choice(LINES).encode()]
        case 2:
            changed = []
        case 3:
            changed = [lines[other].partition(b" = ")[0] + equals + value]
        case _:
            changed = [key + b" = " + rng.choice(VALUES).encode()]
    return [*lines[:at], *changed, *lines[at + 1 :]]


def mutated(raw, rng):
    """The bytes of a config with one to three kinds of damage."""
    for _ in range(rng.randint(1, 3)):
        raw = damaged_bytes(raw, rng) if rng.random() < 0.3 else b"\n".join(damaged_lines(raw.split(b"\n"), rng))
    return raw


@pytest.mark.parametrize("seeds", [range(2000), pytest.param(range(2000, 102_000), marks=pytest.mark.product)])
def test_mutated(seeds, tmp_path):
    """Damaged shipped configs: a config with a bounded plan, or one line."""
    path, refused = tmp_path / "c.toml", 0
    for seed in seeds:
        rng = random.Random(seed)
        path.write_bytes(mutated(rng.choice(SHIPPED_CONFIGS), rng))
        refused += outcome(path) is not None
    assert len(seeds) / 2 < refused < len(seeds)  # both ends are exercised
