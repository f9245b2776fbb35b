"""The native sources in builds of their own: by other compilers, for ARM in an emulator, and under sanitizers here."""

import importlib.util
import pathlib
import shutil
import subprocess
import sys

import pytest
from tiers import product

from packlight.compile.aot import host_features
from packlight.quant.kernels.native_build import FLAGS, SOURCES

EMULATOR = "qemu-aarch64-static"
FOR_ARM = (  # each if it is there: the distribution's, and the one that makes the wheels
    pytest.param(["aarch64-linux-gnu-g++"], id="g++"),
    pytest.param([sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"], id="zig"),
)
FOLDER = pathlib.Path(__file__).parent
# Integers are exact in both; float32 sums over up to 9 blocks of a product and a minimum: TWIN of test_native.py.
TWIN = 1e-5


def is_there(compiler: list[str]) -> bool:
    return bool(importlib.util.find_spec("ziglang") if "ziglang" in compiler else shutil.which(compiler[0]))


def build(program: pathlib.Path, compiler: list[str], check: str, patterns: list[str], *flags: str) -> None:
    sources = [path for pattern in patterns for path in sorted(SOURCES.glob(pattern))]
    command = [*compiler, *FLAGS, *flags, f"-I{SOURCES}", *map(str, sources), str(FOLDER / check), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "cannot find" in done.stderr and "san" in done.stderr:
        pytest.skip("this compiler has no sanitizer libraries")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("compiler", ["c++", "g++", "clang++"])
def test_what_a_cpu_has_follows_from_its_own_words(compiler):
    """No compiler's table of names is asked: clang 14 knows no "f16c", and Zig's comes without what fills the table."""
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    checks = ("-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{SOURCES}")
    done = subprocess.run([compiler, *FLAGS, *checks, FOLDER / "check_isa.cc"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which(EMULATOR), reason=f"needs {EMULATOR}")
@pytest.mark.parametrize("compiler", FOR_ARM)
def test_neon_kernels_equal_the_portable_ones(tmp_path, compiler):
    if not is_there(compiler):
        pytest.skip(f"needs {' '.join(compiler[-4:])}")
    program = tmp_path / "check"
    sources = ["neon_*.cc", "portable.cc", "pack.cc", "grids.cc"]
    build(program, compiler, "check_kernels.cc", sources, "-Wall", "-Wextra", "-Werror", "-static", "-DKERNELS=kNeon")
    done = subprocess.run([EMULATOR, str(program)], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < TWIN


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
@pytest.mark.parametrize(("isa", "needs"), [product("avx2", "avx2"), ("avx512", "avx512_vnni")])
def test_kernels_read_and_write_only_their_own(tmp_path, isa, needs):
    """Address and undefined-behaviour sanitizers over every format on ragged sizes."""
    if needs not in host_features().split():
        pytest.skip(f"this CPU has no {needs}")
    program = tmp_path / "check"
    kernels = "kAvx512Bf16" if isa == "avx512" and "avx512_bf16" in host_features().split() else f"k{isa.capitalize()}"
    sanitize = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-DKERNELS={kernels}")
    build(program, ["g++"], "check_kernels.cc", [f"{isa}_*.cc", "portable.cc", "pack.cc", "grids.cc"], *sanitize)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < TWIN


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_shared_work_has_no_race_and_waits_for_nobody(tmp_path):
    """Also with 8 callers on a pool of 2 threads, which a call that waited for its helpers would block for ever."""
    program = tmp_path / "check"
    build(program, ["g++"], "check_work.cc", [], "-O1", "-fsanitize=thread")
    # fixed addresses: gcc 12's sanitizer does not know the layouts of newer kernels
    run = [*(["setarch", "-R"] if shutil.which("setarch") else []), str(program)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run on this kernel")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
