"""The GGUF reader on damaged and hostile files: one typed line or success, within a second, in bounded memory.

The kinds are those of badgguf's list; `hostile` makes each byte by byte, so that the tests stand without the examples.
"""

import json
import os
import random
import re
import struct
import time

import numpy as np
import pytest
from conftest import shared_path
from ggufs import write_llama
from hostile import (
    ARR,
    BOOL,
    CASES,
    NAMED,
    NUMBERS,
    ONE,
    STR,
    array,
    gguf,
    info,
    mutated,
    pair,
    sound_model,
    text,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from processor import slowness
from running import grown

from packlight.common.errors import GGUFError, PacklightError, UnsupportedError
from packlight.model.gguf.reader import open_gguf, read_tensor


def outcome(path):
    """None when the file opens, else the error; anything but one printable line naming the file fails the test."""
    error, began = None, time.process_time()  # this process's seconds: a busy machine is not the reader's fault
    try:
        for tensor in open_gguf(path).tensors.values():
            assert read_tensor(tensor).nbytes == tensor.nbytes
    except PacklightError as e:
        error = e
    assert time.process_time() - began < slowness()
    if error is not None:
        assert str(error).startswith(str(path))
        assert str(error).isprintable()
        assert len(str(error)) < 1000
    return error


@pytest.mark.parametrize(("kind", "raws", "words"), CASES, ids=[f"{i}-{kind}" for i, (kind, *_) in enumerate(CASES)])
def test_kind(kind, raws, words, tmp_path):
    path = tmp_path / "m.gguf"
    for i, raw in enumerate(raws):
        path.write_bytes(raw)
        error = outcome(path)
        if words is None:
            assert error is None, f"case {i}: {error}"
        else:
            assert error is not None, f"case {i} opened"
            assert re.search(words, str(error)), f"case {i}: {error}"


@pytest.mark.shared
def test_every_kind_of_the_list_has_a_case():
    listed = json.loads(shared_path("badgguf", "index.json").read_text())["kinds"]
    container = {kind for kind in listed if not kind.startswith("model_")}
    # the three are made below: by hypothesis, and from whole files
    assert container - {kind for kind, *_ in CASES} == {"kv_random_good", "truncated", "mutated"}


@pytest.mark.shared
def test_example_files():
    entries = json.loads(shared_path("badgguf", "index.json").read_text())["entries"]
    assert len(entries) == 23
    for entry in entries:
        got = "reject" if outcome(shared_path("badgguf", entry["file"])) else "accept"
        assert entry["open"] in (got, "either"), entry["file"]


def test_memory_is_bounded(tmp_path):
    """All cases in one process of 1 GiB of address space, and never 100 MB more than at the start."""
    for i, raw in enumerate(raw for _, raws, _ in CASES for raw in raws):
        (tmp_path / f"{i}.gguf").write_bytes(raw)
    work = """
for path in pathlib.Path(sys.argv[1]).iterdir():
    try: open_gguf(path)
    except PacklightError: pass
"""
    imports = """
import pathlib
from packlight.common.errors import PacklightError
from packlight.model.gguf.reader import open_gguf
"""
    assert grown(imports, work, tmp_path) < 100_000  # measured 6,000


@pytest.mark.parametrize("key", ["text", "list"])
def test_text_that_is_not_utf8_raises_when_it_is_read(key, tmp_path):
    bad = [pair("text", STR, text(b"\xff")), pair("list", ARR, array(STR, 2, text("a") + text(b"\xff")))]
    (tmp_path / "m.gguf").write_bytes(gguf([*bad, NAMED]))
    metadata = open_gguf(tmp_path / "m.gguf").metadata
    assert metadata["general.name"] == metadata.get("general.name") == "x"
    assert metadata.get("absent", 3) == 3
    assert [getattr(v, "escaped", v) for v in metadata.values()] == [r"\xff", ["a", r"\xff"], "x"]
    for read in (metadata.__getitem__, metadata.get):
        with pytest.raises(GGUFError, match=rf"m\.gguf: .*key '{key}' is not UTF-8: '\\xff'"):
            read(key)


def test_a_description_that_is_not_utf8_is_escaped(tmp_path):
    """What decides how a model runs is refused by name all the same."""
    tags = array(STR, 2, text("a") + text(b"\xe9"))
    described = [pair("general.name", STR, text(b"caf\xe9 \\")), pair("general.tags", ARR, tags)]
    (tmp_path / "m.gguf").write_bytes(gguf([*described, pair("general.architecture", STR, text(b"llam\xe9"))]))
    metadata = open_gguf(tmp_path / "m.gguf").metadata
    assert [metadata["general.name"], metadata.get("general.tags")] == ["caf\\xe9 \\", ["a", r"\xe9"]]
    with pytest.raises(GGUFError, match=r"key 'general\.architecture' is not UTF-8: 'llam\\xe9'"):
        metadata.get("general.architecture")


def test_refusals_have_the_right_class(tmp_path):
    for type_id, kind in ((26, UnsupportedError), (4, UnsupportedError), (99, GGUFError)):
        (tmp_path / "m").write_bytes(gguf((), [info("a", [256], type_id, 0)], bytes(1024)))
        assert type(outcome(tmp_path / "m")) is kind


def numeric(kind):
    dtype = np.dtype("<" + NUMBERS[kind])
    if dtype.kind == "f":
        return st.floats(width=8 * dtype.itemsize, allow_nan=False)
    return st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.one_of(
    *(st.tuples(st.just(kind), numeric(kind)) for kind in NUMBERS),
    *(st.tuples(st.just(kind), st.lists(numeric(kind), max_size=9)) for kind in NUMBERS),
    st.tuples(st.just(BOOL), st.booleans()),
    st.tuples(st.just(BOOL), st.lists(st.booleans(), max_size=9)),
    st.tuples(st.just(STR), TEXTS),
    st.tuples(st.just(STR), st.lists(TEXTS, max_size=9)),
)


def encode(kind, value):
    if isinstance(value, list):
        return array(kind, len(value), b"".join(encode(kind, v) for v in value))
    return text(value) if kind == STR else struct.pack("<" + NUMBERS.get(kind, "?"), value)


@given(pairs=st.dictionaries(TEXTS.filter(lambda k: k and "\0" not in k), VALUES, max_size=8))
@settings(max_examples=100, deadline=None)
def test_kv_random_good(pairs, tmp_path_factory):
    """Whatever is written is read back, of the type written."""
    for meaningful in ("general.alignment", "split.no", "split.count"):  # hypothesis finds these in the source
        pairs.pop(meaningful, None)
    path = tmp_path_factory.getbasetemp() / "random_good.gguf"
    path.write_bytes(
        gguf(
            [pair(k, ARR if isinstance(v, list) else t, encode(t, v)) for k, (t, v) in pairs.items()], [ONE], bytes(32)
        )
    )
    metadata = open_gguf(path).metadata
    assert list(metadata) == list(pairs)
    for key, (kind, value) in pairs.items():
        got = metadata[key]
        if isinstance(value, list) and kind != STR:
            assert got.dtype == (bool if kind == BOOL else np.dtype("<" + NUMBERS[kind]))
            got = got.tolist()
        assert type(got) is type(value)
        assert got == value


# Damage of any kind


def test_truncated_at_every_byte(tmp_path):
    sound, path = sound_model(), tmp_path / "m.gguf"
    path.write_bytes(sound)
    assert outcome(path) is None
    for n in range(len(sound) - 1, -1, -1):
        os.truncate(path, n)
        assert outcome(path) is not None, f"opened with {n} of {len(sound)} bytes"


@pytest.mark.parametrize("seeds", [range(2000), pytest.param(range(2000, 102_000), marks=pytest.mark.product)])
def test_mutated(seeds, tmp_path):
    """Damaged files: each opens, and then every tensor can be read, or is refused in one line."""
    path = tmp_path / "m.gguf"
    sound = [sound_model(), write_llama(tmp_path / "llama.gguf", embed=32, vocab=270, layers=1).read_bytes()]
    refused = 0
    for seed in seeds:
        path.write_bytes(mutated(sound[seed % 8 == 0], random.Random(seed)))
        refused += outcome(path) is not None
    assert len(seeds) / 2 < refused < len(seeds)  # both ends are exercised
