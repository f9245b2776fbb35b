"""Makes a wheel for each platform, with its native kernels built: `make wheels`, on any one machine.

The package `ziglang` has a C++ compiler with the system libraries of all platforms. This knows that compiler, the names
of platforms and what a wheel is made of; what is compiled, and how, is `quant.kernels.native_build`'s. The headers of
XLA's FFI are those of the oldest jaxlib that pyproject.toml allows, because a newer one takes what was built for it.
"""

import argparse
import base64
import concurrent.futures
import hashlib
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from typing import NamedTuple

from packlight.quant.kernels.native_build import FLAGS, SOURCES
from packlight.quant.kernels.prebuilt import file_name, include_folder, sources_digest

ROOT = pathlib.Path(__file__).resolve().parents[1]
OLDEST_GLIBC = (2, 28)  # what the tags below promise
HIDDEN = "-fvisibility=hidden"  # what the library has of libc++ is nobody else's
SHOWN = (b"packlight_matmul", b"packlight_attention", b"packlight_delta", b"packlight_mamba2")  # to Python
SHOWN += (b"packlight_pack", b"packlight_set_grid", b"packlight_ffi_minor")
INSIDE = "packlight/quant/kernels/prebuilt"  # quant.kernels.prebuilt.FOLDER in a wheel


class Platform(NamedTuple):
    """A platform that there is a wheel for."""

    target: str  # Zig's name, with the oldest glibc or macOS that the library runs on
    system: str  # as Python's `platform` calls it
    machine: str
    tag: str  # of the wheel


PLATFORMS = (
    Platform("x86_64-linux-gnu.2.28", "Linux", "x86_64", "manylinux_2_28_x86_64"),
    Platform("aarch64-linux-gnu.2.28", "Linux", "aarch64", "manylinux_2_28_aarch64"),
    Platform("aarch64-macos.11.0", "Darwin", "arm64", "macosx_11_0_arm64"),
    Platform("x86_64-windows-gnu", "Windows", "AMD64", "win_amd64"),
)


def main() -> None:
    """Builds the wheels that the command line asks for, and says where they are."""
    parser = argparse.ArgumentParser(description="a wheel for each platform, with its native kernels built")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "dist", help="folder for the wheels")
    parser.add_argument("--only", help="a part of the wheel's tag: build those platforms alone")
    values = parser.parse_args()
    wanted = [p for p in PLATFORMS if not values.only or values.only in p.tag]
    if not wanted:
        sys.exit(f"error: --only={values.only}: no tag has it; there are {', '.join(p.tag for p in PLATFORMS)}")
    check_headers()
    values.out.mkdir(parents=True, exist_ok=True)
    pure = pure_wheel(values.out)
    print(f"{pure.name}: {pure.stat().st_size / 1e6:.2f} MB")
    with tempfile.TemporaryDirectory() as scratch:
        for library, platform in zip(build(wanted, pathlib.Path(scratch)), wanted, strict=True):
            if wrong := fault(library.read_bytes(), platform.system):
                sys.exit(f"error: {platform.tag}: {wrong}")
            wheel = with_library(pure, library, platform.tag)
            size = library.stat().st_size / 1e6
            print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, of which the library has {size:.2f} unpacked")


def oldest_jaxlib() -> str:
    """The oldest version of jaxlib that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (needs,) = (line for line in project["dependencies"] if line.startswith("jaxlib"))
    (oldest,) = re.findall(r">=([0-9.]+)", needs)
    return oldest


def check_headers() -> None:
    """Ends the program unless the installed jaxlib is the one whose headers the libraries are to be built with."""
    found, wanted = importlib.metadata.version("jaxlib"), oldest_jaxlib()
    if found != wanted:
        sys.exit(f"error: jaxlib {found} is installed; wheels are built with the oldest that is allowed, {wanted}")


def pure_wheel(out: pathlib.Path) -> pathlib.Path:
    """The wheel without a library, which any platform can install."""
    code = "import sys, hatchling.build as b; print(b.build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(out.resolve())]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return out / done.stdout.splitlines()[-1]


def build(platforms: list[Platform], folder: pathlib.Path) -> list[pathlib.Path]:
    """The library of each platform. Ends the program with the compiler's words when it fails."""
    sources = sorted(SOURCES.glob("*.cc"))
    digest = sources_digest(SOURCES)

    def compiled(platform: Platform, source: pathlib.Path) -> str:
        target = folder / f"{platform.tag}-{source.stem}.o"
        zig(platform, *FLAGS, HIDDEN, "-isystem", str(include_folder()), "-c", str(source), "-o", str(target))
        return str(target)

    libraries = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = {p: [pool.submit(compiled, p, source) for source in sources] for p in platforms}
        try:
            for platform, parts in objects.items():
                library = folder / file_name(platform.system, platform.machine, digest)
                zig(platform, "-shared", "-s", *[part.result() for part in parts], "-o", str(library))
                libraries.append(library)
        except BaseException:  # those that wait do not begin
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return libraries


def zig(platform: Platform, *arguments: str) -> None:
    """Runs Zig's C++ compiler for a platform. Ends the program with what it wrote when it fails."""
    command = [sys.executable, "-m", "ziglang", "c++", "-target", platform.target, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {platform.tag}: {' '.join(command)}\n{done.stderr}")


def fault(content: bytes, system: str) -> str | None:
    """Why a built library would not load where its wheel is installed, or None."""
    missing = [name.decode() for name in SHOWN if name + b"\0" not in content]
    if missing:
        return f"the library does not show {', '.join(missing)}"
    versions = [(int(major), int(minor)) for major, minor in re.findall(rb"GLIBC_(\d+)\.(\d+)", content)]
    if (needs := max(versions, default=OLDEST_GLIBC)) > OLDEST_GLIBC:
        return f"the library needs glibc {needs[0]}.{needs[1]}"
    if system == "Darwin" and b"\xfa\xde\x0c\xc0" not in content:
        return "the library is not signed: a Mac would not load it"
    return None


def with_library(pure: pathlib.Path, library: pathlib.Path, tag: str) -> pathlib.Path:
    """A copy of the pure wheel for one platform, with its library; the record of its files says so."""
    wheel = pure.with_name(pure.name.replace("none-any", f"none-{tag}"))
    added = f"{INSIDE}/{library.name}"
    with zipfile.ZipFile(pure) as source, zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        files = {name: source.read(name) for name in source.namelist()}
        (info,) = (name for name in files if name.endswith(".dist-info/WHEEL"))
        (record,) = (name for name in files if name.endswith(".dist-info/RECORD"))
        changed = {added: library.read_bytes(), info: for_platform(files[info].decode(), tag).encode()}
        listed = [line for line in files[record].decode().splitlines() if line.rsplit(",", 2)[0] not in changed]
        listed[-1:-1] = [record_line(name, content) for name, content in changed.items()]
        changed[record] = ("\n".join(listed) + "\n").encode()
        for name in [*files, added]:
            like = source.getinfo(name if name in files else record)  # its date and permissions
            entry = zipfile.ZipInfo(name, like.date_time)
            entry.external_attr, entry.compress_type = like.external_attr, zipfile.ZIP_DEFLATED
            target.writestr(entry, changed.get(name, files.get(name, b"")))
    return wheel


def for_platform(text: str, tag: str) -> str:
    """A wheel's WHEEL file, of which one platform's files are."""
    text = re.sub(r"(?m)^Root-Is-Purelib: true$", "Root-Is-Purelib: false", text)
    return re.sub(r"(?m)^Tag: (.*)-any$", rf"Tag: \1-{tag}", text)


def record_line(name: str, content: bytes) -> str:
    """What RECORD says of a file: name, digest and size."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    return f"{name},sha256={digest},{len(content)}"


if __name__ == "__main__":
    main()
