"""packlight as its users start it: command lines in processes of their own, and small configs for them."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(ROOT / "run.py")]
SMALL = {"platform": "cpu", "prefill_buckets": [16], "decode_batch": [1], "head_rows": 1}  # three executables
STEPS = 3


def write_config(path: pathlib.Path, **keys: Any) -> pathlib.Path:
    """A TOML file of SMALL with further or replacing keys."""
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in (SMALL | keys).items()))
    return path


def packlight(*arguments: Any, stdin: bytes = b"", **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command line to its end; the variables come on top of this process's. A model may write any line end, so
    none is translated.
    """
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=os.environ | environment,
        cwd=pathlib.Path(__file__).parent,  # anywhere but the repository's root
        input=stdin,
        capture_output=True,
        timeout=300,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def succeed(*arguments: Any, stdin: bytes = b"", **environment: str) -> "subprocess.CompletedProcess[str]":
    """`packlight`, asserting that it exits with 0."""
    done = packlight(*arguments, stdin=stdin, **environment)
    assert done.returncode == 0, done.stderr
    return done


def grown(imports: str, work: str, *arguments: Any, stdin: str = "") -> int:
    """Kilobytes that a process of 1 GiB of address space grows by while it runs the Python code `work`."""
    code = f"""
import resource, sys
{imports}
def peak():  # ru_maxrss would begin with the parent's
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
before = peak()
{work}
print(peak() - before)
"""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # its threads' stacks are address space too
    run = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(run, input=stdin, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return int(done.stdout)


def interrupt(folder: pathlib.Path, beginning: str, *arguments: Any) -> "subprocess.CompletedProcess[str]":
    """Runs a command line and presses Ctrl-C once `folder` has a file whose name begins so."""
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not any(path.name.startswith(beginning) for path in folder.iterdir()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    text, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, text, errors)
