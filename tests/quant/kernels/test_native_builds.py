"""The native sources in builds of their own: for ARM in an emulator, and under sanitizers on this CPU."""

import pathlib
import shutil
import subprocess

import pytest

from packlight.compile.aot import host_features
from packlight.quant.kernels.native_build import FLAGS, SOURCES

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
FOLDER = pathlib.Path(__file__).parent
# Integers are exact in both; float32 sums over up to 9 blocks of a product and a minimum: TWIN of test_native.py.
TWIN = 1e-5


def build(program: pathlib.Path, compiler: str, check: str, patterns: list[str], *flags: str) -> None:
    sources = [path for pattern in patterns for path in sorted(SOURCES.glob(pattern))]
    command = [compiler, *FLAGS, *flags, f"-I{SOURCES}", *map(str, sources), str(FOLDER / check), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "cannot find" in done.stderr and "san" in done.stderr:
        pytest.skip("this compiler has no sanitizer libraries")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"needs {COMPILER} and {EMULATOR}")
def test_neon_kernels_equal_the_portable_ones(tmp_path):
    program = tmp_path / "check"
    sources = ["neon_*.cc", "portable.cc", "pack.cc"]
    build(program, COMPILER, "check_kernels.cc", sources, "-Wall", "-Wextra", "-Werror", "-static", "-DKERNELS=kNeon")
    done = subprocess.run([EMULATOR, str(program)], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < TWIN


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
@pytest.mark.parametrize(("isa", "needs"), [("avx2", "avx2"), ("avx512", "avx512_vnni")])
def test_kernels_read_and_write_only_their_own(tmp_path, isa, needs):
    """Address and undefined-behaviour sanitizers over every format on ragged sizes."""
    if needs not in host_features().split():
        pytest.skip(f"this CPU has no {needs}")
    program = tmp_path / "check"
    sanitize = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-DKERNELS=k{isa.capitalize()}")
    build(program, "g++", "check_kernels.cc", [f"{isa}_*.cc", "portable.cc", "pack.cc"], *sanitize)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < TWIN


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_shared_work_has_no_race_and_waits_for_nobody(tmp_path):
    """Also with 8 callers on a pool of 2 threads, which a call that waited for its helpers would block for ever."""
    program = tmp_path / "check"
    build(program, "g++", "check_work.cc", [], "-O1", "-fsanitize=thread")
    # fixed addresses: gcc 12's sanitizer does not know the layouts of newer kernels
    run = [*(["setarch", "-R"] if shutil.which("setarch") else []), str(program)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run on this kernel")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
