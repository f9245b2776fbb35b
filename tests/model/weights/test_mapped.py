"""Weights that a file is mapped to: the same bits as those that are read, and never wrong ones, whatever is done to the
file, to the model's own, to the disk or to the process that writes.
"""

import contextlib
import errno
import gc
import hashlib
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from ggufs import NOISE, write_llama
from recipe_files import write as write_recipe
from recipes import RECIPES
from running import succeed, write_config

import packlight
from packlight import demo, stored
from packlight.common import mounts, room
from packlight.common.progress import shown_by
from packlight.compile.config import CompileConfig, MeshShape
from packlight.model.weights import load as reading
from packlight.model.weights import mapfile, mapped
from packlight.model.weights.load import read_weights
from packlight.model.weights.mapped import map_weights
from packlight.prepared import Changes, prepare
from packlight.quant.kernels import native_build

MIXED = {"ffn_down": "Q6_K", "attn_v": "F16", "output": "Q5_0", "blk.1.attn_k": "Q8_0", "default": "Q4_K"}
SMALL = {"context": 64, "prefill_buckets": (16,), "decode_batch": (1,), "head_rows": 1}


def write_mixed(path, seed=0):
    """Two layers with several formats of one tensor, and rows that no number of lanes divides."""
    return write_llama(path, layers=2, embed=256, vocab=300, formats=MIXED, seed=seed)


class Model:
    """A model file, and a folder for its mapped weights."""

    def __init__(self, path, folder):
        self.path, self.folder = path, folder
        self.prepared = prepare(path, CompileConfig(**SMALL))
        self.layouts = self.prepared.kernels.layouts

    def map(self, progress=lambda nbytes: None, most_bytes=0):
        prepared = self.prepared
        return map_weights(prepared.file, prepared.model, progress, self.layouts, self.folder, most_bytes)

    def read(self):
        return read_weights(self.prepared.file, self.prepared.model, layouts=self.layouts)

    @property
    def file(self):
        (found,) = self.folder.glob("*.weights")
        return found

    @property
    def seal(self):
        return self.file.with_suffix(".seal")

    def maps_right(self, *warnings):
        """Maps the weights, which are right, with these warnings, and leaves nothing unfinished."""
        found = self.map()
        assert found.weights is not None, found.warnings
        assert same(found.weights, self.read())
        assert len(found.warnings) == len(warnings), found.warnings
        for said, words in zip(found.warnings, warnings, strict=True):
            assert words in said
            assert said.isprintable()
        assert not [*self.folder.glob("*.tmp")]
        return found.weights

    def falls_back(self, words):
        """Maps nothing, says why in one line, and leaves nothing unfinished."""
        found = self.map()
        assert found.weights is None
        assert found.warnings[-1].startswith("weights are read into memory, not mapped: ")
        assert words in found.warnings[-1]
        assert found.warnings[-1].isprintable()
        assert not [*self.folder.glob("*.tmp")]


def same(weights, others):
    """Whether two lists of host weights are the same in every field and byte."""
    for one, other in zip(weights, others, strict=True):
        assert (one.weight, one.axis, one.places) == (other.weight, other.axis, other.places)
        assert (one.qtypes, one.layouts) == (other.qtypes, other.layouts)
        for mine, theirs in zip(one.parts[0], other.parts[0], strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)
    return True


@pytest.fixture
def model(tmp_path):
    return Model(write_mixed(tmp_path / "model.gguf"), tmp_path / "store")


@pytest.fixture
def unchecked(monkeypatch):
    """Fails the test when checksums of tensors are compared."""
    monkeypatch.setattr(mapped, "check_tensors", lambda *_: pytest.fail("it was checked"))


def flip(path, at):
    """One bit of a file, whose times change with it."""
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    with open(path, "r+b") as file:
        file.write(raw)


@pytest.mark.parametrize("name", ["llama-gqa", "llama-tied", "llama-moe", "llama-iq", "qwen2"])
def test_recipes_map_to_what_is_read(tmp_path, name):
    made = Model(write_recipe(tmp_path / "m.gguf", RECIPES[name]), tmp_path / "store")
    made.maps_right()
    made.maps_right()


def test_the_first_start_writes_and_the_next_reads_nothing(model, unchecked, monkeypatch):
    done = []
    model.maps_right()
    assert (model.file.stat().st_mode & 0o777, model.seal.stat().st_mode & 0o777) == (0o600, 0o600)
    before = model.file.stat()
    right = model.read()
    os.utime(model.seal, (1, 1))

    monkeypatch.setattr(reading, "read_into", lambda *_: pytest.fail("a matrix was read"))
    monkeypatch.setattr(mapped, "write", lambda *_: pytest.fail("the file was written"))
    again = model.map(done.append)
    assert again.weights is not None
    assert same(again.weights, right)
    assert sum(done) == model.prepared.weights_bytes
    after = model.file.stat()
    assert (before.st_ino, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_ino,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )
    assert model.seal.stat().st_mtime > 1  # when it was used


def test_what_takes_long_is_said_before_it_begins(model):
    told = []

    @contextlib.contextmanager
    def show(title, total, unit, note):
        told.append(note)
        done = []
        yield done.append
        assert sum(done) == total

    with shown_by(show):
        model.maps_right()
        model.maps_right()
        size = f"{model.file.stat().st_size / 1e6:,.1f} MB of weights"
        assert told == [f"writing {size} to {model.folder}, once for this file"]
        os.utime(model.file)
        model.maps_right()
    assert told[1:] == [f"checking {size} in {model.file}, which was touched"]


def test_buffers_begin_on_pages_and_cannot_be_written(tmp_path):
    """Those that are larger than a huge page, on one of these in the file."""
    path = write_llama(tmp_path / "m.gguf", layers=2, embed=512, ffn=4096, vocab=300, formats={"default": "Q8_0"})
    model = Model(path, tmp_path / "store")
    model.maps_right()
    found = model.map().weights
    assert found is not None
    with open(model.file, "rb") as file:
        header = mapfile.read_header(file.fileno(), model.file.stat().st_size)
    starts = {record.name: header.first() + record.offset for record in header.tensors}
    large = 0
    for host in found:
        if host.weight.is_vector:
            continue
        for group, buffer in enumerate(host.parts[0]):
            assert buffer.ctypes.data % mapfile.PAGE == 0
            assert not buffer.flags.writeable
            if buffer.nbytes > mapfile.HUGE_PAGE:
                first = next((n for n, (at, _) in enumerate(host.places) if at == group), 0)
                assert starts[host.weight.tensors[first]] % mapfile.HUGE_PAGE == 0
                large += 1
    assert large >= 3


# What is done to a file of weights, and what is said of it.
def in_header(model):
    flip(model.file, 60)
    return "its header is damaged; it is made anew"


def in_magic(model):
    flip(model.file, 3)
    return "its header is damaged; it is made anew"


def in_length(model):
    flip(model.file, 22)
    return "its header is damaged; it is made anew"


def in_tensor(model):
    flip(model.file, model.file.stat().st_size - 1)
    return "' is damaged; it is made anew"


def in_tensor_with_its_times(model):
    status = model.file.stat()
    flip(model.file, status.st_size - 1)
    os.utime(model.file, ns=(status.st_atime_ns, status.st_mtime_ns))
    return "' is damaged; it is made anew"


def in_seal_and_tensor(model):
    model.seal.unlink()
    return in_tensor(model)


def cut(model):
    os.truncate(model.file, model.file.stat().st_size - 1)
    return "bytes, not "


def cut_to_nothing(model):
    os.truncate(model.file, 0)
    return "its header is damaged; it is made anew"


def lengthened(model):
    os.truncate(model.file, model.file.stat().st_size + 1)
    return "bytes, not "


def writable_by_others(model):
    model.file.chmod(0o622)
    return "other users own it or have access to it; it is made anew"


def of_another_model(model):
    """Sound and sealed, under a name that is not its own."""
    name = model.file
    other = Model(write_llama(model.folder / "m.gguf", **NOISE), model.folder / "other")
    other.maps_right()
    shutil.copy(other.file, name)
    return "it holds other tensors; it is made anew"


def with_another_header(model):
    """As only an author of the format would write it."""
    raw = model.file.read_bytes()
    text = b"[1, 2]"
    start = mapfile.MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text
    model.file.write_bytes(start + raw[len(start) :])
    return "its header is none; it is made anew"


DAMAGES = (in_header, in_magic, in_length, in_tensor, in_tensor_with_its_times, in_seal_and_tensor)
DAMAGES += (cut, cut_to_nothing, lengthened, writable_by_others, of_another_model, with_another_header)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_said_and_made_anew(model, damage, monkeypatch):
    model.maps_right()
    name = str(model.file)
    words = damage(model)
    found = model.map()
    assert found.weights is not None
    assert same(found.weights, model.read())
    (said,) = found.warnings
    assert said.startswith(f"{name}: ")
    assert words in said
    assert said.isprintable()
    monkeypatch.setattr(mapped, "check_tensors", lambda *_: pytest.fail("it was checked"))
    model.maps_right()


def test_the_tensor_that_is_damaged_is_named(model):
    model.maps_right()
    with open(model.file, "rb") as file:
        header = mapfile.read_header(file.fileno(), model.file.stat().st_size)
    record = next(record for record in header.tensors if record.name == "blk.1.ffn_down.weight")
    flip(model.file, header.first() + record.offset + record.nbytes // 2)
    model.maps_right("tensor 'blk.1.ffn_down.weight' is damaged; it is made anew")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_another_users_file_is_made_anew(model):
    model.maps_right()
    os.chown(model.file, 12345, -1)
    model.maps_right("other users own it or have access to it; it is made anew")


# What leaves the bytes as they are, and the system's times not.
def touched(model):
    os.utime(model.file, (1, 1))


def copied(model):
    aside = model.folder / "aside"
    shutil.copy2(model.file, aside)
    os.replace(aside, model.file)


def in_seal(model):
    flip(model.seal, 5)


def without_seal(model):
    model.seal.unlink()


def with_a_long_seal(model):
    model.seal.write_bytes(b"x" * 100_000)


def with_a_seal_of_others(model):
    model.seal.chmod(0o666)


def in_a_hole(model):
    """Between the header and the first buffer."""
    with open(model.file, "rb") as file:
        header = mapfile.read_header(file.fileno(), model.file.stat().st_size)
    flip(model.file, header.first() - 1)


@pytest.mark.parametrize(
    "change", [touched, copied, in_seal, without_seal, with_a_long_seal, with_a_seal_of_others, in_a_hole]
)
def test_a_file_that_was_touched_is_checked_once(model, change, monkeypatch):
    model.maps_right()
    checked = []
    monkeypatch.setattr(mapped, "check_tensors", lambda *args: (checked.append(1), mapfile.check_tensors(*args)))
    model.maps_right()
    change(model)
    inode = model.file.stat().st_ino
    model.maps_right()
    model.maps_right()
    assert checked == [1]
    assert model.file.stat().st_ino == inode


def test_a_seal_takes_the_users_secret(model, tmp_path, monkeypatch):
    model.maps_right()
    checked = []
    monkeypatch.setattr(mapped, "check_tensors", lambda *args: (checked.append(1), mapfile.check_tensors(*args)))
    monkeypatch.setattr(mapped, "user_secret", lambda: b"x" * 32)
    model.maps_right()
    assert checked == [1]


def test_a_source_that_was_touched_or_replaced_is_another_file(model):
    first = model.maps_right()
    old = model.file
    os.utime(model.path, (1, 1))
    model.maps_right()
    (new,) = {*model.folder.glob("*.weights")} - {old}
    write_mixed(model.path.with_name("other.gguf"), seed=7)
    os.replace(model.path.with_name("other.gguf"), model.path)
    again = Model(model.path, model.folder)
    assert not np.array_equal(again.maps_right()[0].parts[0][0], first[0].parts[0][0])
    assert len([*model.folder.glob("*.weights")]) == 3
    stale = {each.path: each.stale for each in stored.kept(CompileConfig(cache_dir=str(model.folder)))}
    assert stale[old] == stale[new] == f"{model.path} has changed"
    model.path.unlink()
    kept = [each for each in stored.kept(CompileConfig(cache_dir=str(model.folder))) if each.kind == "weights"]
    assert {each.stale for each in kept} == {f"{model.path} is gone"}


def test_a_source_that_changes_while_it_is_read_is_not_kept(model, monkeypatch):
    def write_and_touch(*args):
        header = mapfile.write(*args)
        os.utime(model.path, (1, 1))
        return header

    monkeypatch.setattr(mapped, "write", write_and_touch)
    model.falls_back("model.gguf: changed while it was read")
    assert not [*model.folder.glob("*.weights")]


def test_another_layout_is_another_file(model):
    model.maps_right()
    model.layouts, before = dict.fromkeys(model.layouts, "ggml"), model.layouts
    if model.layouts == before:
        pytest.skip("the kernels of this machine read ggml's layout")
    assert model.map().weights is not None
    assert len([*model.folder.glob("*.weights")]) == 2


def test_a_scale_that_is_not_finite_is_refused_and_nothing_is_kept(tmp_path):
    path = write_mixed(tmp_path / "model.gguf")
    info = prepare(path, CompileConfig(**SMALL)).file.tensors["blk.0.attn_q.weight"]
    with open(path, "r+b") as file:
        file.seek(info.offset)
        file.write(b"\xff\xff")
    model = Model(path, tmp_path / "store")
    with pytest.raises(packlight.GGUFError, match="'blk.0.attn_q.weight': block 0 has a scale that is NaN"):
        model.map()
    assert not [*model.folder.iterdir()]


# What keeps a file from being written.
@contextlib.contextmanager
def full_disk(model, monkeypatch):
    usage = shutil.disk_usage(model.path)
    with monkeypatch.context() as patch:
        patch.setattr(room.shutil, "disk_usage", lambda _: usage._replace(free=5))
        yield "0.0 MB are free"


@contextlib.contextmanager
def disk_that_fills_up(model, monkeypatch):
    left, write = [3], os.pwrite

    def limited(*args):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(mapfile.os, "pwrite", limited)
        yield "No space left on device"


@contextlib.contextmanager
def disk_that_fails_at_the_end(model, monkeypatch):
    def failed(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(mapfile.os, "fsync", failed)
        yield "No space left on device"


@contextlib.contextmanager
def limited_size_of_files(model, monkeypatch):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        yield "File too large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def folder_of_everyone(model, monkeypatch):
    model.folder.chmod(0o777)
    yield f"{model.folder}: other users may write to it"
    model.folder.chmod(0o700)


@contextlib.contextmanager
def folder_that_cannot_be_written(model, monkeypatch):
    def refused(path, mode):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    with monkeypatch.context() as patch:
        patch.setattr(mapped, "whole_file", refused)  # root may write everywhere
        yield "Permission denied"


@contextlib.contextmanager
def file_in_the_folders_place(model, monkeypatch):
    aside = model.folder.with_name("aside")
    os.replace(model.folder, aside)
    model.folder.touch()
    yield "File exists"
    model.folder.unlink()
    os.replace(aside, model.folder)


@contextlib.contextmanager
def network_folder(model, monkeypatch):
    listed = model.path.with_name("mountinfo")
    listed.write_text(f"1 1 0:1 / / rw - ext4 x rw\n2 1 0:2 / {model.folder} rw - nfs4 server:/x rw\n")
    with monkeypatch.context() as patch:
        patch.setattr(mounts, "MOUNTS", listed)
        yield "on a file system of type nfs4"


@contextlib.contextmanager
def no_secret(model, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(model.path))  # a file
        yield "Not a directory"


@contextlib.contextmanager
def no_addresses(model, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr(mapped.mmap, "mmap", refused)
        yield "Cannot allocate memory"


@contextlib.contextmanager
def no_library(model, monkeypatch):
    """What would catch the signal of a file that is cut short."""

    def refused():
        raise native_build.NativeBuildError("no C++ compiler")

    with monkeypatch.context() as patch:
        patch.setattr(native_build, "loaded", refused)
        yield "no C++ compiler"


TROUBLES = (full_disk, disk_that_fills_up, disk_that_fails_at_the_end, limited_size_of_files, folder_of_everyone)
TROUBLES += (folder_that_cannot_be_written, file_in_the_folders_place, network_folder, no_secret, no_addresses)
TROUBLES += (no_library,)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_cannot_be_mapped_is_said_in_a_line(model, trouble, monkeypatch):
    model.folder.mkdir(mode=0o700)
    with trouble(model, monkeypatch) as words:
        model.falls_back(words)
    model.maps_right()


@pytest.mark.parametrize("trouble", [full_disk, disk_that_fills_up, folder_that_cannot_be_written])
def test_a_damaged_file_that_cannot_be_made_anew_is_not_used(model, trouble, monkeypatch):
    model.maps_right()
    in_tensor(model)
    with trouble(model, monkeypatch) as words:
        model.falls_back(words)


def test_a_file_that_is_made_wrong_is_not_used(model, monkeypatch):
    """As by a disk that keeps other bytes than it was given."""

    def write_and_cut(fd, *args):
        header = mapfile.write(fd, *args)
        os.ftruncate(fd, 10)
        return header

    monkeypatch.setattr(mapped, "write", write_and_cut)
    model.falls_back("its header is damaged")


CHILD = """
import hashlib, os, signal, sys, time
from packlight.compile.config import CompileConfig
from packlight.model.weights import mapfile
from packlight.model.weights.mapped import map_weights
from packlight.prepared import prepare
import pathlib
path, folder, slow = sys.argv[1:]
prepared = prepare(path, CompileConfig(context=64, prefill_buckets=(16,), decode_batch=(1,), head_rows=1))
layouts = prepared.kernels.layouts
if slow:
    write = os.pwrite
    def halting(*args):
        done = write(*args)
        os.write(1, b"writing\\n")  # of two threads
        time.sleep(600)
    mapfile.os.pwrite = halting
print("ready", flush=True)
sys.stdin.readline()
found = map_weights(prepared.file, prepared.model, lambda n: None, layouts, pathlib.Path(folder))
digest = hashlib.sha256()
for host in found.weights:
    for buffer in host.parts[0]:
        digest.update(buffer)
print(digest.hexdigest(), *found.warnings, flush=True)
"""


def child(model, slow=""):
    """A process that maps the weights once it is told to."""
    command = [sys.executable, "-c", CHILD, str(model.path), str(model.folder), slow]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_that_come_first_together(model):
    digest = hashlib.sha256()
    for host in model.read():
        for buffer in host.parts[0]:
            digest.update(buffer)
    processes = [child(model), child(model)]
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    assert {process.communicate(timeout=120)[0] for process in processes} == {f"{digest.hexdigest()}\n"}
    model.maps_right()
    assert sorted(path.suffix for path in model.folder.iterdir()) == [".seal", ".weights"]


def test_a_killed_writer_leaves_no_file_of_weights_and_what_it_left_goes(model):
    process = child(model, "slow")
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "writing\n"
    (left,) = model.folder.iterdir()
    assert left.suffix == ".tmp"
    (entry,) = [each for each in stored.kept(CompileConfig(cache_dir=str(model.folder))) if each.path == left]
    assert (entry.kind, entry.held) == ("unfinished", True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    model.maps_right()
    assert not left.exists()


def listed(model):
    """What the cache has of weights, by file."""
    kept = stored.kept(CompileConfig(cache_dir=str(model.folder)))
    return {each.path: each for each in kept if each.kind == "weights"}


def test_a_file_is_held_as_long_as_it_is_mapped(model):
    weights = model.maps_right()
    (each,) = listed(model).values()
    assert (each.held, each.stale, each.bytes) == (True, None, model.file.stat().st_size)
    assert each.made_by["packlight"] == packlight.__version__
    assert stored.remove([each]) == []
    kept = weights[0].parts[0][0][0]  # a part of a buffer holds it
    del weights
    assert listed(model)[model.file].held
    del kept
    assert not listed(model)[model.file].held
    assert stored.remove([each]) == [each]
    assert not [*model.folder.iterdir()]


def test_the_command_lists_and_prunes_them(model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = write_config(tmp_path / "c.toml", cache_dir=str(model.folder))
    weights = model.maps_right()
    text = succeed("cache", f"--config={config}").stdout
    assert re.search(r"^weights +packlight \S+ +1 +\S+ MB +just now +stays: in use$", text, re.MULTILINE)
    model.path.unlink()
    del weights
    assert re.search(r" goes: .*model.gguf is gone$", succeed("cache", f"--config={config}").stdout, re.MULTILINE)
    assert succeed("cache", "prune", "--dry_run", f"--config={config}").stdout.startswith("would remove 1 files, ")
    assert succeed("cache", "prune", f"--config={config}").stdout.startswith("removed 1 files, ")
    assert not [*model.folder.iterdir()]


def test_a_seal_without_its_weights_goes(model):
    model.maps_right()
    seal = model.seal
    model.file.unlink()
    (each,) = listed(model).values()
    assert (each.path, each.stale) == (seal, "its weights are gone")
    assert stored.remove([each]) == [each]


def test_the_list_tells_damage_and_other_versions(model, monkeypatch):
    model.maps_right()
    monkeypatch.setattr(mapped, "laying_out_hash", lambda: "0" * 16)
    assert listed(model)[model.file].stale == "another packlight"
    cut(model)
    assert "bytes, not" in (listed(model)[model.file].stale or "")


def test_a_bound_on_the_disk_lets_the_longest_unused_go(tmp_path):
    models = [Model(write_mixed(tmp_path / f"{n}.gguf", seed=n), tmp_path / "store") for n in range(3)]
    files = []
    for model in models[:2]:
        before = {*model.folder.glob("*.weights")}
        model.maps_right()
        files += {*model.folder.glob("*.weights")} - before
    size = files[0].stat().st_size
    os.utime(files[1].with_suffix(".seal"), (1, 1))  # used longer ago than the first
    held = models[1].map()
    os.utime(files[1].with_suffix(".seal"), (1, 1))
    third = models[2].map(most_bytes=2 * size + 100_000)
    assert third.weights is not None
    assert files[1].exists()  # held
    assert not files[0].exists()
    assert not files[0].with_suffix(".seal").exists()
    assert held.weights is not None

    refused = models[0].map(most_bytes=2 * size + 100_000)  # both others are held
    assert refused.weights is None
    assert "config key 'cache_bytes' allows" in refused.warnings[0]
    assert len([*tmp_path.glob("store/*.weights")]) == 2
    assert models[0].map(most_bytes=10).weights is None
    del third, held
    assert models[0].map(most_bytes=size + 100_000).weights is not None
    assert len([*tmp_path.glob("store/*.weights")]) == 1


# The whole model.
@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("executables")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"mixed": write_mixed(folder / "mixed.gguf"), "demo": pathlib.Path(demo.MODEL)}


def regions():
    """Where this process's memory is mapped to files of weights: (first, end) addresses."""
    for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
        if ".weights" in line:
            first, end = line.split()[0].split("-")
            yield int(first, 16), int(end, 16)


@pytest.mark.parametrize(("name", "kernels"), [("mixed", "auto"), ("mixed", "xla"), ("demo", "auto")])
def test_a_mapped_model_gives_the_same_bits_and_copies_nothing(paths, store, name, kernels):
    config = CompileConfig(**SMALL, cpu_kernels=kernels, cache_dir=str(store))
    plain = packlight.load(paths[name], config)
    llm = packlight.load(paths[name], config, weights="mapped")
    assert (llm.executables.misses, llm.warnings) == (0, ())
    ids = [*range(5, 25)]
    np.testing.assert_array_equal(llm.logits(ids), plain.logits(ids))
    greedy = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
    assert llm.generate([ids], **greedy)[0].token_ids == plain.generate([ids], **greedy)[0].token_ids
    matrices = [leaf for leaf in jax.tree.leaves(llm.engine._params) if leaf.dtype == np.uint8]
    assert sum(leaf.nbytes for leaf in matrices) == llm.memory.mapped
    assert llm.memory.mapped + llm.memory.weights == plain.memory.weights
    places = [*regions()]
    for leaf in matrices:
        address = leaf.unsafe_buffer_pointer()
        assert any(first <= address and address + leaf.nbytes <= end for first, end in places), leaf.shape
    llm.close()
    del llm, matrices, leaf
    gc.collect()
    assert not [*regions()]


PROCESS = """
import json, pathlib, re, sys
import packlight
from packlight.compile.config import CompileConfig
path, store, weights = sys.argv[1:]
small = dict(context=64, prefill_buckets=(16,), decode_batch=(1,), head_rows=1)
llm = packlight.load(path, CompileConfig(**small, cache_dir=store), weights=weights)
llm.generate("hello", temperature=0, max_tokens=4)
status = pathlib.Path("/proc/self/status").read_text()
found = {name: 1024 * int(re.search(rf"^{name}:\\s+(\\d+)", status, re.M)[1]) for name in ("RssAnon", "RssFile")}
print(json.dumps(found | {"mapped": llm.memory.mapped, "misses": llm.executables.misses}))
"""


def test_a_file_that_is_cut_short_while_it_is_used_ends_no_process(paths, tmp_path):
    config = CompileConfig(**SMALL, cache_dir=str(tmp_path / "store"))
    llm = packlight.load(paths["mixed"], config, weights="mapped")
    (file,) = (tmp_path / "store").glob("*.weights")
    ids, greedy = [*range(5, 25)], {"temperature": 0, "max_tokens": 8}
    expected = llm.logits(ids)
    os.truncate(file, file.stat().st_size // 2)
    for ask in (lambda: llm.generate([ids], **greedy), lambda: llm.logits(ids)):
        with pytest.raises(packlight.PacklightError, match=rf"{file}: weights in use cannot be read: the file was cut"):
            ask()
    with packlight.load(paths["mixed"], config, weights="mapped") as again:
        assert "bytes, not" in again.warnings[0]  # it is made anew
        np.testing.assert_array_equal(again.logits(ids), expected)
    with pytest.raises(packlight.PacklightError, match="weights in use cannot be read"):
        llm.generate([ids], **greedy)
    llm.close()


def test_mapped_weights_are_no_memory_of_the_process(tmp_path, store):
    """R31: what the plan counts as mapped, to a tenth."""
    path = write_llama(tmp_path / "m.gguf", layers=4, embed=1024, heads=8, kv_heads=8, vocab=300)
    found = {}
    for weights in ("resident", "resident", "mapped", "mapped"):  # the first of each may compile or write
        command = [sys.executable, "-c", PROCESS, str(path), str(store), weights]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[weights] = json.loads(done.stdout)
    plain, own = found["resident"], found["mapped"]
    assert (plain["mapped"], own["misses"], plain["misses"]) == (0, 0, 0)
    assert own["mapped"] > 5e7
    assert plain["RssAnon"] - own["RssAnon"] > 0.9 * own["mapped"]
    assert own["RssFile"] - plain["RssFile"] > 0.9 * own["mapped"]


def test_the_plan_counts_what_is_mapped_apart(paths):
    plain, own = (
        prepare(paths["mixed"], CompileConfig(**SMALL), weights=kind).memory for kind in ("resident", "mapped")
    )
    assert own.mapped + own.weights == plain.weights > own.mapped > 10 * own.weights
    assert plain.total - own.total == own.mapped
    assert str(own).startswith(f"weights {own.mapped / 1e6:.1f} MB mapped; vectors 0.0 MB + cache ")
    assert str(plain).startswith(f"weights {plain.weights / 1e6:.1f} MB + cache ")


def test_what_fits_only_mapped_loads_and_is_refused_where_it_cannot_be(paths, store, monkeypatch):
    config = CompileConfig(**SMALL, cache_dir=str(store))
    own, plain = (packlight.load(paths["demo"], config, weights=kind).memory for kind in ("mapped", "resident"))
    short = CompileConfig(**SMALL, cache_dir=str(store), memory_limit=own.total + 1000)
    with pytest.raises(packlight.MemoryLimitError):
        packlight.load(paths["demo"], short)
    assert packlight.load(paths["demo"], short, weights="mapped").memory.total == own.total
    monkeypatch.setattr(mapped, "remote_type", lambda _: "nfs4")
    with pytest.raises(packlight.MemoryLimitError) as refused:
        packlight.load(paths["demo"], short, weights="mapped")
    assert str(refused.value).startswith("weights are read into memory, not mapped: ")
    assert "type nfs4" in str(refused.value)
    assert "does not fit: weights " in str(refused.value)
    llm = packlight.load(paths["demo"], config, weights="mapped")
    assert (llm.config.weights, llm.memory.weights) == ("resident", plain.weights)
    (said,) = llm.warnings
    assert "type nfs4" in said


def test_only_one_cpu_maps_weights():
    for other in ({"platform": "gpu"}, {"platform": "tpu"}, {"mesh": MeshShape(1, 2)}):
        with pytest.raises(
            packlight.ConfigError, match="key 'weights' is 'mapped'; .* for one CPU device, not for a GPU"
        ):
            CompileConfig(**other, weights="mapped")
        with pytest.raises(packlight.ConfigError, match="^weights=mapped: .* for one CPU device, not for a GPU"):
            Changes(weights="mapped").applied(CompileConfig(**other))
        assert Changes(weights="resident").applied(CompileConfig(**other)).weights == "resident"


@pytest.mark.parametrize("wrong", ["", "mmap", 1, True, ["mapped"]])
def test_wrong_values_are_refused_by_name(wrong):
    with pytest.raises(packlight.ConfigError, match="key 'weights' is .*; it is one of resident, mapped"):
        CompileConfig(weights=wrong)
    with pytest.raises(packlight.ConfigError, match="^weights=.*: it is one of resident, mapped"):
        Changes(weights=wrong)


@pytest.mark.parametrize("wrong", [-1, "1", 1.5, True])
def test_a_bound_is_a_number_of_bytes(wrong):
    with pytest.raises(packlight.ConfigError, match="key 'cache_bytes' is .*; it is an integer >= 0"):
        CompileConfig(cache_bytes=wrong)
