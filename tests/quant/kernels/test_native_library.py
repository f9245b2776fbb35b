"""The native library: built once, loaded from where it can be, and what is left of builds that fail or are ended."""

import contextlib
import ctypes
import importlib.machinery
import importlib.util
import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from packlight.common import progress
from packlight.quant.kernels import native_build, prebuilt

pytestmark = pytest.mark.skipif(not native_build.is_likely(), reason="needs a C++ compiler")


@pytest.fixture
def tiny_sources(tmp_path, monkeypatch):
    """A library of one line, and a cache folder of its own."""
    sources = tmp_path / "native"
    sources.mkdir()
    (sources / "one.cc").write_text('extern "C" int one() { return 1; }\n')
    monkeypatch.setattr(native_build, "SOURCES", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return sources


def test_a_build_is_kept_and_follows_its_sources(tiny_sources):
    path, digest = native_build.library()
    assert path.name == f"{digest}.so"
    built = path.stat().st_mtime_ns
    assert native_build.library() == (path, digest)
    assert path.stat().st_mtime_ns == built
    (tiny_sources / "one.cc").write_text('extern "C" int one() { return 2; }\n')
    assert native_build.library()[1] != digest


@pytest.mark.parametrize("damage", [b"", b"no library\n" * 100])
def test_a_damaged_build_is_built_again(tiny_sources, damage):
    path, digest = native_build.library()
    path.write_bytes(damage)
    library, found = native_build.loaded.__wrapped__()
    assert (library.one(), found) == (1, digest)
    assert os.listdir(path.parent) == [path.name]


def test_a_build_tells_how_far_it_is(tiny_sources):
    """One more than the sources: it ends with the link."""
    (tiny_sources / "two.cc").write_text("int two() { return 2; }\n")
    told = []

    @contextlib.contextmanager
    def show(*task):
        told.append(task)
        yield told.append

    with progress.shown_by(show):
        native_build.library()
        native_build.library()  # there is one: nothing to tell
    (title, total, unit, note), *amounts = told
    assert (title, total, unit, sum(amounts)) == ("native kernels", 3, "file", 3)
    assert re.fullmatch(r"building the native kernels with .+, once on this machine", note)


def test_first_uses_at_the_same_time(tiny_sources):
    found = []
    uses = [threading.Thread(target=lambda: found.append(native_build.library())) for _ in range(4)]
    for t in uses:
        t.start()
    for t in uses:
        t.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    folder = found[0][0].parent
    assert os.listdir(folder) == [found[0][0].name]  # no temporaries stay
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_failed_compile_shows_what_the_compiler_said(tiny_sources):
    (tiny_sources / "one.cc").write_text("int one() { return missing; }\n")
    with pytest.raises(native_build.NativeBuildError, match=r"(?s)failed: .*one\.cc.*missing"):
        native_build.library()


def test_no_compiler_is_an_error_of_its_own(tiny_sources, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(native_build.NativeBuildError, match="no C.. compiler: CXX='no-such-compiler' is no program"):
        native_build.library()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    nothing = r"none of c\+\+, g\+\+, clang\+\+ is on PATH; packlight\[compiler\] brings one"
    with pytest.raises(native_build.NativeBuildError, match=nothing):
        native_build.library()


def test_zig_builds_where_no_other_compiler_is(tiny_sources, tmp_path, monkeypatch):
    """For any CPU of the kind, as the others do. The real one takes minutes: `make wheels` uses it."""
    zig = tmp_path / "ziglang" / "zig"
    zig.parent.mkdir()
    real = shutil.which("c++")
    says = f"echo $* >> {tmp_path}/asked\n[ $1 = version ] && echo 0.17.1 && exit\n"
    zig.write_text(f"#!/bin/sh\n{says}shift 2\nexec {real} $*\n")
    zig.chmod(0o755)
    spec = importlib.machinery.ModuleSpec("ziglang", None, is_package=True)
    spec.submodule_search_locations = [str(zig.parent)]
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "ziglang" else found(name))
    assert native_build._compiler()[1] != "zig c++ 0.17.1"  # another one is there
    monkeypatch.setattr(native_build, "COMPILERS", ())
    assert ctypes.CDLL(str(native_build.library()[0])).one() == 1
    assert native_build._compiler()[1] == "zig c++ 0.17.1"
    compiled = [line for line in (tmp_path / "asked").read_text().splitlines() if " -c " in line]
    assert compiled
    assert all(line.startswith("c++ -mcpu=baseline -O3 ") for line in compiled)


@pytest.fixture
def fake_compiler(tiny_sources, tmp_path, monkeypatch):
    """A compiler that writes what is in the file `made`, and a line to `log` for each call."""
    (tmp_path / "made").write_text("no library\n" * 100)
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f"#!/bin/sh\n[ $1 = --version ] && exit\necho >> {tmp_path}/log\n"
        f'while [ $# -gt 0 ]; do [ "$1" = -o ] && cp {tmp_path}/made "$2"; shift; done\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    return lambda: (tmp_path / "log").read_text().count("\n") if (tmp_path / "log").exists() else 0


def test_a_library_that_cannot_be_loaded_is_built_once(fake_compiler, tmp_path):
    """It takes a call for the source and one to link."""
    for _ in range(3):
        with pytest.raises(native_build.NativeBuildError, match=r"so was built and cannot be loaded \(.*invalid ELF"):
            native_build.loaded.__wrapped__()
        assert fake_compiler() == 2
    path, _ = native_build.library()
    assert native_build.obstacle() == f"native kernels: {path} cannot be loaded"
    path.write_text("damaged\n")  # another than the one that was judged
    assert native_build.is_likely()
    for _ in range(2):
        with pytest.raises(native_build.NativeBuildError, match="was built and cannot be loaded"):
            native_build.loaded.__wrapped__()
        assert fake_compiler() == 4


@pytest.fixture
def failing_compiler(tiny_sources, tmp_path, monkeypatch):
    """A compiler that fails as the file `fails` says, and writes a line to `log` for each call."""
    (tmp_path / "fails").write_text("echo 'one.cc:1: no such vector' >&2; exit 1\n")
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\n[ $1 = --version ] && exit\necho >> {tmp_path}/log\n. {tmp_path}/fails\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    return lambda: (tmp_path / "log").read_text().count("\n")


def refusal() -> str:
    with pytest.raises(native_build.NativeBuildError) as raised:
        native_build.loaded.__wrapped__()
    return str(raised.value)


def test_a_compiler_that_fails_is_asked_once_a_day(failing_compiler, tmp_path, monkeypatch):
    """And with the same words each time; sooner when the file that they name goes, or with another compiler."""
    assert native_build.is_likely()
    first = refusal()
    (file,) = (tmp_path / "cache" / "packlight" / "native").iterdir()
    why = f"compiler failed: one.cc:1: no such vector; it is tried again in a day, or when {file} is deleted"
    assert first == f"native kernels: {tmp_path}/{why}"
    assert [refusal(), refusal(), native_build.obstacle(), failing_compiler()] == [first, first, first, 1]
    assert native_build.running_if_built() is None
    file.unlink()
    assert native_build.is_likely()
    assert [refusal(), failing_compiler()] == [first, 2]
    os.utime(file, (0, time.time() - native_build.REMEMBERED - 1))
    assert [refusal(), failing_compiler()] == [first, 3]
    shutil.copy(tmp_path / "compiler", tmp_path / "other")
    monkeypatch.setenv("CXX", str(tmp_path / "other"))
    assert [refusal() != first, failing_compiler()] == [True, 4]
    file.write_text("damaged\n")
    assert [refusal() != first, failing_compiler()] == [True, 5]


def test_a_build_that_succeeds_forgets_the_one_that_failed(failing_compiler, tmp_path):
    refusal()
    (file,) = (tmp_path / "cache" / "packlight" / "native").iterdir()
    os.utime(file, (0, 0))
    (tmp_path / "fails").write_text(f'exec {shutil.which("c++")} "$@"\n')
    assert native_build.loaded.__wrapped__()[0].one() == 1
    assert not file.exists()


def test_a_compiler_that_is_killed_is_asked_again(failing_compiler, tmp_path):
    (tmp_path / "fails").write_text("kill -9 $$\n")
    assert [refusal() == refusal(), failing_compiler()] == [True, 2]
    assert not [*(tmp_path / "cache" / "packlight" / "native").iterdir()]


@pytest.mark.parametrize("in_memory", [True, False])
def test_where_the_folder_lets_no_library_run_a_copy_does(tiny_sources, tmp_path, monkeypatch, in_memory):
    """Like a folder mounted noexec, which only root can make."""

    class Library(prebuilt.Library):
        def __init__(self, name: str):
            if name.startswith(str(tmp_path / "cache")):
                raise OSError(f"{name}: failed to map segment from shared object")
            super().__init__(name)

    monkeypatch.setattr(prebuilt, "Library", Library)
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create")
    path, digest = native_build.library()
    built = path.stat().st_mtime_ns
    library, found = native_build.loaded.__wrapped__()
    assert (library.one(), found, path.stat().st_mtime_ns) == (1, digest, built)
    assert library.note == (
        f"native kernels: a copy of {path} runs, which cannot itself (failed to map segment from shared object)"
    )
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_build_that_is_ended_leaves_nothing(tiny_sources, tmp_path, number):
    """Neither files, after a SIGKILL those that the next start finds, nor a compiler at work."""
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\n[ $1 = --version ] && exit\nsleep 600 &\necho $! > {tmp_path}/pid\nwait\n")
    compiler.chmod(0o755)
    code = f"""
import pathlib
import shutil
from packlight.cli.terminal import end_by_signals
from packlight.quant.kernels import native_build, prebuilt
end_by_signals()
native_build.SOURCES = pathlib.Path({str(tiny_sources)!r})
native_build.library()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"CXX": str(compiler)}, stderr=subprocess.PIPE, text=True
    )
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text().endswith("\n")):
        assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate()
    sleeping = int(pid.read_text())
    folder = tmp_path / "cache" / "packlight" / "native"
    if number == signal.SIGKILL:
        assert len(os.listdir(folder)) == 1
        os.kill(sleeping, signal.SIGKILL)
        path, _ = native_build.library()
        assert os.listdir(folder) == [path.name]
    else:
        assert (process.returncode, said) == (143, "\nterminated\n")
        assert os.listdir(folder) == []
        state = pathlib.Path(f"/proc/{sleeping}/stat")
        until = time.monotonic() + 30
        while state.exists() and state.read_text().split()[2] != "Z":
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_folder_that_others_may_write_to_is_not_used(tiny_sources, tmp_path):
    folder = tmp_path / "cache" / "packlight" / "native"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(native_build.NativeBuildError, match="other users may write to it"):
        native_build.library()
