"""What is kept in a folder stays within a bound: by last use, sparing what is in use."""

import errno
import os
import time

import pytest

from packlight.common.files import hold_open
from packlight.common.room import make_room, used_at
from packlight.compile.store import Store

LONG_AGO = 1_000_000.0


def kept(folder, name, nbytes, used):
    path = folder / name
    path.write_bytes(bytes(nbytes))
    if path.suffix == ".weights":
        path.with_suffix(".seal").write_bytes(b"")
        os.utime(path.with_suffix(".seal"), (used, used))
    else:
        os.utime(path, (used, used))
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_executables_and_weights_go_by_their_last_use(tmp_path):
    kept(tmp_path, "a.aot", 10, LONG_AGO + 2)
    kept(tmp_path, "b.weights", 20, LONG_AGO + 1)
    kept(tmp_path, "c.aot", 30, LONG_AGO)
    kept(tmp_path, "other.txt", 1000, LONG_AGO)
    make_room(tmp_path, 40, 100)
    assert names(tmp_path) == ["a.aot", "b.seal", "b.weights", "c.aot", "other.txt"]  # 100 in all
    make_room(tmp_path, 41, 100)
    assert names(tmp_path) == ["a.aot", "b.seal", "b.weights", "other.txt"]
    make_room(tmp_path, 71, 100)
    assert names(tmp_path) == ["a.aot", "other.txt"]
    make_room(tmp_path, 1000, 0)  # no bound
    assert names(tmp_path) == ["a.aot", "other.txt"]


def test_nothing_goes_where_that_is_no_use(tmp_path):
    kept(tmp_path, "a.aot", 10, LONG_AGO)
    kept(tmp_path, "b.aot", 20, time.time() + 60)  # of a program that this process runs
    for nbytes, most in ((81, 100), (101, 100)):
        with pytest.raises(OSError, match=r"allows 0\.0 MB") as caught:
            make_room(tmp_path, nbytes, most)
        assert caught.value.errno == errno.EDQUOT
    assert names(tmp_path) == ["a.aot", "b.aot"]
    make_room(tmp_path, 80, 100)
    assert names(tmp_path) == ["b.aot"]


def test_weights_that_a_process_holds_stay(tmp_path):
    path = kept(tmp_path, "a.weights", 10, LONG_AGO)
    kept(tmp_path, "b.weights", 10, LONG_AGO + 1)
    with open(path, "rb") as file:
        hold_open(file.fileno())
        make_room(tmp_path, 5, 15)
    assert names(tmp_path) == ["a.seal", "a.weights"]


def test_a_store_within_a_bound_keeps_what_is_read(tmp_path):
    value = bytes(1000)
    paths = []
    for each in "abc":
        Store(tmp_path).write(each * 64, value)
        paths.append(Store(tmp_path).path(each * 64))
        os.utime(paths[-1], (LONG_AGO, LONG_AGO + len(paths)))
    size = paths[0].stat().st_size
    assert Store(tmp_path).read("a" * 64) == value
    assert used_at(paths[0]) > LONG_AGO + 10
    Store(tmp_path, 3 * size).write("d" * 64, value)
    assert [path.exists() for path in paths] == [True, False, True]
    with pytest.raises(OSError, match="config key 'cache_bytes' allows"):
        Store(tmp_path, size).write("e" * 64, value)
    assert Store(tmp_path).read("d" * 64) == value
