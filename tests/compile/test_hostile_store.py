"""Stored executables that are damaged or foreign: one EntryError each, and not a byte of them is unpickled."""

import hashlib
import os
import pathlib
import pickle
import random
import time

import pytest
from hostile import mutated

from packlight.compile import store as module
from packlight.compile.store import MAGIC, MAX_BYTES, EntryError, Store

DIGEST = "d" * 64
VALUE = (b"machine code" * 20, ["a tree"], {"another": 1})


class Bomb:
    """What leaves a mark where it is unpickled."""

    def __init__(self, mark: pathlib.Path):
        self.mark = mark

    def __reduce__(self):
        return pathlib.Path.touch, (self.mark,)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's cache folder, where the secret lies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packlight"


@pytest.fixture
def store(home, tmp_path):
    """A store with one entry."""
    made = Store(tmp_path / "store")
    assert made.problem is None
    made.write(DIGEST, VALUE)
    return made


@pytest.fixture
def unread(monkeypatch):
    """Fails the test when anything is unpickled."""
    monkeypatch.setattr(module.pickle, "loads", lambda raw: pytest.fail("it was unpickled"))


def refusal(store, words):
    began = time.process_time()
    with pytest.raises(EntryError, match=f"^{DIGEST}.aot: .*({words})") as caught:
        store.read(DIGEST)
    assert time.process_time() - began < 1
    assert str(caught.value).isprintable()


def test_truncated_at_every_byte(store, unread):
    raw = store.path(DIGEST).read_bytes()
    for n in range(len(raw) - 1, -1, -1):
        os.truncate(store.path(DIGEST), n)
        refusal(store, "damaged")


def test_every_byte_counts(store, unread):
    raw = store.path(DIGEST).read_bytes()
    for at in range(len(raw)):
        store.path(DIGEST).write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :])
        refusal(store, "damaged")
    store.path(DIGEST).write_bytes(raw + b"\0")
    refusal(store, "damaged")


@pytest.mark.parametrize("seeds", [range(2000), pytest.param(range(2000, 102_000), marks=pytest.mark.product)])
def test_mutated(seeds, store, unread):
    raw = store.path(DIGEST).read_bytes()
    for seed in seeds:
        damaged = mutated(raw, random.Random(seed))
        if damaged != raw:
            store.path(DIGEST).write_bytes(damaged)
            refusal(store, "damaged")


def as_directory(path):
    path.mkdir()
    return "a directory, not a regular file"


def as_pipe(path):
    os.mkfifo(path)  # nobody writes to it
    return "a pipe, socket or device"


def as_device(path):
    path.symlink_to("/dev/zero")
    return "a pipe, socket or device"


def as_loop(path):
    path.symlink_to(path)
    return "symbolic links"


def as_huge_file(path):
    path.touch(0o600)
    os.truncate(path, 1 << 40)
    return f"has 1,099,511,627,776 bytes, more than {MAX_BYTES:,}"


def as_unreadable_file(path):
    path.touch(0)
    return "Permission denied" if os.geteuid() else "damaged"  # root reads what it may not


def as_anyones_file(path):
    path.touch()
    path.chmod(0o666)
    return "other users own it or have access to it"


@pytest.mark.parametrize(
    "make", [as_directory, as_pipe, as_device, as_loop, as_huge_file, as_unreadable_file, as_anyones_file]
)
def test_what_is_no_entry_is_refused(make, store, unread):
    store.path(DIGEST).unlink()
    refusal(store, make(store.path(DIGEST)))


def test_an_entry_under_another_name_is_refused(store, unread):
    other = "e" * 64
    store.path(other).write_bytes(store.path(DIGEST).read_bytes())
    with pytest.raises(EntryError, match=f"^{other}.aot: holds another entry"):
        store.read(other)


@pytest.mark.parametrize("sealed", ["not at all", "by its digest alone", "with an empty secret", "by someone else"])
def test_a_pickle_that_this_user_did_not_write_does_not_run(sealed, store, tmp_path, monkeypatch):
    """As it may lie in a folder that a stranger's config names, even where it was unpacked in our name."""
    mark = tmp_path / "mark"
    raw = pickle.dumps(Bomb(mark))
    body = DIGEST.encode() + raw
    match sealed:
        case "not at all":
            content = raw
        case "by its digest alone":
            content = MAGIC + hashlib.sha256(body).digest() + body
        case "with an empty secret":
            content = MAGIC + module.hmac.digest(b"", body, "sha256") + body
        case "by someone else":
            with monkeypatch.context() as patch:
                patch.setenv("XDG_CACHE_HOME", str(tmp_path / "theirs"))
                theirs = Store(tmp_path / "shipped")
                theirs.write(DIGEST, Bomb(mark))
            content = theirs.path(DIGEST).read_bytes()
    store.path(DIGEST).write_bytes(content)
    refusal(store, "not written by this user")
    assert not mark.exists()
    store.write(DIGEST, Bomb(mark))  # what this user wrote is trusted
    store.read(DIGEST)
    assert mark.exists()


def test_the_secret_is_the_users_alone(store, home):
    assert [p.name for p in home.iterdir()] == ["secret"]
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "secret").stat().st_mode & 0o777 == 0o600
    assert store.read(DIGEST) == Store(store.folder).read(DIGEST) == VALUE
    (home / "secret").unlink()
    with pytest.raises(EntryError, match="not written by this user"):
        Store(store.folder).read(DIGEST)


def test_a_secret_that_is_none_is_said(store, home):
    (home / "secret").chmod(0o644)
    assert Store(store.folder).problem == f"{home}/secret: other users own it or have access to it"
    (home / "secret").chmod(0o600)
    os.truncate(home / "secret", 0)
    assert Store(store.folder).problem == f"{home}/secret: has 0 bytes, not 32; delete it"
    home.chmod(0o777)
    assert Store(store.folder).problem == f"{home}: other users may write to it"


def test_an_executable_that_is_too_large_is_not_written(store, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    store.write(DIGEST, b"x" * 800)
    with pytest.raises(ValueError, match="too large"):
        store.write(DIGEST, b"x" * 900)
    assert store.read(DIGEST) == b"x" * 800
