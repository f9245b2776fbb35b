"""Wheels with a built library: their metadata, and what is checked of a library before it goes into one.

What `make wheels` left in dist/ is looked at where it is there.
"""

import base64
import csv
import hashlib
import zipfile

import pytest

from packlight.quant.kernels import native_build, prebuilt
from tools import wheels

ROOT = wheels.ROOT
WHEEL = "Wheel-Version: 1.0\nGenerator: any\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def check_record(wheel: zipfile.ZipFile) -> dict[str, bytes]:
    """The wheel's files, each as its RECORD says."""
    files = {name: wheel.read(name) for name in wheel.namelist()}
    (record,) = (name for name in files if name.endswith(".dist-info/RECORD"))
    listed = list(csv.reader(files[record].decode().splitlines()))
    assert sorted(name for name, _, _ in listed) == sorted(files)
    for name, digest, size in listed:
        if name == record:
            assert (digest, size) == ("", "")
            continue
        want = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).decode().rstrip("=")
        assert (digest, size) == (f"sha256={want}", str(len(files[name])))
    return files


@pytest.mark.parametrize("platform", wheels.PLATFORMS, ids=lambda platform: platform.tag)
def test_a_wheel_of_a_platform_says_so_and_records_its_library(tmp_path, platform):
    pure = tmp_path / "p-0.1-py3-none-any.whl"
    texts = {"packlight/__init__.py": "", "p-0.1.dist-info/METADATA": "Name: p\n", "p-0.1.dist-info/WHEEL": WHEEL}
    with zipfile.ZipFile(pure, "w") as file:
        for name, text in texts.items():
            file.writestr(name, text)
        record = [wheels.record_line(name, text.encode()) for name, text in texts.items()]
        file.writestr("p-0.1.dist-info/RECORD", "\n".join([*record, "p-0.1.dist-info/RECORD,,"]) + "\n")
    library = tmp_path / prebuilt.file_name(platform.system, platform.machine, "0" * 32)
    library.write_bytes(b"a library")
    wheel = wheels.with_library(pure, library, platform.tag)
    assert wheel.name == f"p-0.1-py3-none-{platform.tag}.whl"
    files = check_record(zipfile.ZipFile(wheel))
    assert files.pop(f"packlight/quant/kernels/prebuilt/{library.name}") == b"a library"
    said = files["p-0.1.dist-info/WHEEL"].decode().splitlines()
    assert said == ["Wheel-Version: 1.0", "Generator: any", "Root-Is-Purelib: false", f"Tag: py3-none-{platform.tag}"]
    assert set(files) == {*texts, "p-0.1.dist-info/RECORD"}
    assert ("packlight", *prebuilt.FOLDER.parts[-3:]) == tuple(wheels.INSIDE.split("/"))


SHOWN = b"\0".join([*wheels.SHOWN, b""])


@pytest.mark.parametrize(
    ("content", "system", "words"),
    [
        (SHOWN + b"GLIBC_2.28\0GLIBC_2.4\0", "Linux", None),
        (SHOWN + b"GLIBC_2.4\0GLIBC_2.29\0", "Linux", "the library needs glibc 2.29"),
        (SHOWN.replace(b"packlight_pack", b""), "Linux", "the library does not show packlight_pack"),
        (SHOWN, "Windows", None),
        (SHOWN, "Darwin", "the library is not signed: a Mac would not load it"),
        (SHOWN + b"\xfa\xde\x0c\xc0", "Darwin", None),
    ],
)
def test_a_library_that_would_not_load_goes_into_no_wheel(content, system, words):
    assert wheels.fault(content, system) == words


def test_headers_are_those_of_the_oldest_jaxlib(monkeypatch):
    assert f'"jaxlib>={wheels.oldest_jaxlib()},<' in (ROOT / "pyproject.toml").read_text()
    monkeypatch.setattr(wheels.importlib.metadata, "version", lambda name: "99.0")
    with pytest.raises(SystemExit, match=r"error: jaxlib 99\.0 is installed; .*, 0\.10\.2"):
        wheels.check_headers()


@pytest.mark.parametrize("platform", wheels.PLATFORMS, ids=lambda platform: platform.tag)
def test_the_wheels_that_were_made_hold_these_sources(platform):
    made = sorted((ROOT / "dist").glob(f"packlight-*-none-{platform.tag}.whl"))
    if not made:
        pytest.skip("run `make wheels` first")
    files = check_record(zipfile.ZipFile(made[-1]))
    name = prebuilt.file_name(platform.system, platform.machine, prebuilt.sources_digest(native_build.SOURCES))
    assert f"{wheels.INSIDE}/{name}" in files, "dist/ is older than the sources: run `make wheels` again"
    assert wheels.fault(files[f"{wheels.INSIDE}/{name}"], platform.system) is None
