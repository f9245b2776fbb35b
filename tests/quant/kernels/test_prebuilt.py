"""The library of a wheel: used without a compiler where it fits, and otherwise a line says why another one runs."""

import hashlib
import platform
import shutil

import pytest

from packlight.compile.config import CompileConfig
from packlight.compile.kernels import build_kernels, expected
from packlight.quant.kernels import native_build, prebuilt

SOURCES = prebuilt.sources_digest(native_build.SOURCES)
NAME = prebuilt.file_name(platform.system(), platform.machine(), SOURCES)


@pytest.fixture(scope="module")
def built():
    """A library of the sources, as a wheel's is; built by the compiler of this machine."""
    try:
        return native_build.library()[0]
    except native_build.NativeBuildError as error:
        if "no C++ compiler" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture
def folder(built, tmp_path, monkeypatch):
    """An installed package's folder for libraries, not made yet; nothing that was loaded before is remembered."""
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path / "prebuilt")
    for remembered in (native_build.packaged, native_build.loaded):
        remembered.cache_clear()
    yield prebuilt.FOLDER
    for remembered in (native_build.packaged, native_build.loaded):
        remembered.cache_clear()


def test_a_pure_wheel_and_a_checkout_have_none(folder):
    assert native_build.packaged() == prebuilt.Found()
    folder.mkdir()
    assert native_build.packaged.__wrapped__() == prebuilt.Found()
    assert build_kernels(CompileConfig())[1] is None
    assert native_build.running().origin.startswith("built here by ")


def test_the_wheels_library_runs_without_a_compiler_or_a_cache(folder, built, monkeypatch, tmp_path):
    folder.mkdir()
    shutil.copy(built, folder / NAME)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    assert expected(CompileConfig()).kernel_path == "native"
    config, warning = build_kernels(CompileConfig())
    assert (config.kernel_path, warning) == ("native", None)
    library, digest = native_build.loaded()
    assert digest == hashlib.sha256(built.read_bytes()).hexdigest()[:32]  # of the stored executables' names a part
    assert native_build.running().origin == "from the wheel"
    assert native_build.running_if_built() == native_build.running()
    assert (library.packlight_ffi_major(), library.packlight_ffi_minor()) == prebuilt.ffi_version()
    assert not (tmp_path / "nothing").exists()


WINDOWS = prebuilt.file_name("Windows", "AMD64", SOURCES)
OTHERS = {
    "other sources": (prebuilt.file_name(platform.system(), platform.machine(), "0" * 32), f"not {NAME}"),
    "another platform": (WINDOWS, f"windows-x86_64-{SOURCES}.dll and not {NAME}"),
    "no library": (NAME, "invalid ELF header"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_library_that_does_not_fit_is_said_and_one_is_built(folder, kind):
    name, words = OTHERS[kind]
    folder.mkdir()
    (folder / name).write_bytes(b"no library\n" * 100)
    assert_built_here_instead(words)
    assert (folder / name).exists()  # it is the package's


@pytest.mark.parametrize(("jaxlib", "words"), [((0, 2), "jaxlib has 0.2"), ((1, 3), "jaxlib has 1.3")])
def test_a_library_for_another_ffi_is_said_and_one_is_built(folder, built, monkeypatch, jaxlib, words):
    folder.mkdir()
    shutil.copy(built, folder / NAME)
    monkeypatch.setattr(prebuilt, "ffi_version", lambda: jaxlib)
    assert_built_here_instead(words)


def assert_built_here_instead(words: str) -> None:
    config, warning = build_kernels(CompileConfig())
    assert config.kernel_path == "native"
    assert words in warning
    assert warning.endswith("; kernels built here run instead")
    assert "\n" not in warning
    assert native_build.running().origin.startswith("built here by ")


def test_without_a_compiler_either_both_reasons_are_said(folder, monkeypatch):
    folder.mkdir()
    (folder / NAME).write_bytes(b"")
    monkeypatch.setenv("CXX", "no-such-compiler")
    config, warning = build_kernels(CompileConfig())
    assert config.kernel_path == "xla"
    assert str(folder / NAME) in warning
    assert "no-such-compiler" in warning


@pytest.mark.parametrize(
    ("made_for", "here", "fit"),
    [((0, 3), (0, 3), True), ((0, 3), (0, 4), True), ((0, 4), (0, 3), False), ((0, 3), (1, 3), False)],
)
def test_an_older_ffi_is_taken_and_a_newer_one_is_not(made_for, here, fit):
    assert prebuilt.fits(made_for, here) is fit


def test_sources_have_one_name_whatever_ends_their_lines(tmp_path):
    digests = set()
    for kind, end in (("unix", "\n"), ("windows", "\r\n")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "one.cc").write_bytes(f"int one;{end}".encode())
        digests.add(prebuilt.sources_digest(tmp_path / kind))
    assert len(digests) == 1
    (tmp_path / "unix" / "one.cc").write_text("int two;\n")
    assert prebuilt.sources_digest(tmp_path / "unix") not in digests
