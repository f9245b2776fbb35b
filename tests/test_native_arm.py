"""The NEON kernels, built by a cross compiler and run in an emulator where both are installed."""

import pathlib
import shutil
import subprocess

import pytest

from quant.native_build import FLAGS, SOURCES

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
CHECK = pathlib.Path(__file__).parent / "check_kernels.cc"


@pytest.mark.skipif(not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"needs {COMPILER} and {EMULATOR}")
def test_neon_kernels_equal_the_portable_ones(tmp_path):
    sources = [*sorted(SOURCES.glob("neon_*.cc")), SOURCES / "portable.cc", SOURCES / "pack.cc", CHECK]
    program = tmp_path / "check"
    command = [COMPILER, *FLAGS, "-Wall", "-Wextra", "-Werror", "-static", f"-I{SOURCES}"]
    subprocess.run([*command, *map(str, sources), "-o", str(program)], check=True)
    done = subprocess.run([EMULATOR, str(program)], capture_output=True, text=True, check=True)
    # Integers are exact in both; float32 sums over up to 9 blocks of a product and a minimum: TWIN of test_native.py.
    assert 0 < float(done.stdout) < 1e-5
