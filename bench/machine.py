"""What a number cannot be read without: machine, versions, commit, file; and what a process used. Imports no jax."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
WHOLE = 1 << 30  # a longer file is known by its first and last MiB and its size


VECTORS = {"avx512_vnni": "AVX-512 VNNI", "avx2": "AVX2", "asimddp": "NEON"}  # Linux's name -> ours, best first


def machine() -> dict[str, Any]:
    """CPU and its vector instructions, cores that this process may use, memory, versions, commit and day."""
    facts = dict(line.split(":", 1) for line in _lines("/proc/cpuinfo") if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = facts.get("flags", facts.get("Features", "")).split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "vectors": next((name for flag, name in VECTORS.items() if flag in flags), ""),
        "cores": threads(),
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "jax": importlib.metadata.version("jax"),
        "jaxlib": importlib.metadata.version("jaxlib"),
        "python": platform.python_version(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def threads() -> int:
    """Cores this process may use, which is how many threads XLA uses on a CPU."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str:
    """The checkout's commit, "-dirty" when its files differ; "" away from a checkout."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if (ROOT / ".git").exists() else ""


def file_facts(path: str) -> dict[str, Any]:
    """Name, size and digest of a file; `hashed` says of what."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if size <= WHOLE:
            digest, hashed = hashlib.file_digest(file, "sha256").hexdigest(), "whole file"
        else:
            part = 1 << 20
            head = file.read(part)
            file.seek(-part, os.SEEK_END)
            digest = hashlib.sha256(head + file.read(part) + str(size).encode()).hexdigest()
            hashed = "first and last MiB, then the size in decimal"
    return {"file": os.path.basename(path), "file_bytes": size, "sha256": digest, "hashed": hashed}


def peak_rss(pid: int | str = "self") -> int:
    """A process's largest resident set so far, in bytes; 0 where the system does not tell it of another process."""
    for line in _lines(f"/proc/{pid}/status"):
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    if pid != "self":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident(pid: int) -> tuple[int, int]:
    """A process's anonymous and file-backed resident memory now, in bytes; 0 where the system does not tell."""
    kilobytes = {line.split()[0]: int(line.split()[1]) for line in _lines(f"/proc/{pid}/status") if line[:3] == "Rss"}
    return 1024 * kilobytes.get("RssAnon:", 0), 1024 * kilobytes.get("RssFile:", 0)


def cpu_seconds(pid: int) -> float:
    """Processor time a process has used; 0 where the system does not tell."""
    fields = next(iter(_lines(f"/proc/{pid}/stat")), "").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def _lines(path: str) -> list[str]:
    try:
        return pathlib.Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
