"""packlight as its users start it: command lines, in this process or one of their own, and small configs for them."""

import contextlib
import io
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
import traceback
import unittest.mock
from collections.abc import Iterable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(ROOT / "run.py")]
# Five executables. Tests of behaviour run them on the model NOISE of ggufs.py: they are compiled once for all.
SMALL = {"platform": "cpu", "prefill_buckets": [16], "decode_batch": [2], "head_rows": 1}
STEPS = 5
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # what the command handles in a way of its own
ELSEWHERE = pathlib.Path(__file__).parent  # where command lines run: anywhere but the repository's root


def write_config(path: pathlib.Path, **keys: Any) -> pathlib.Path:
    """A TOML file of SMALL with further or replacing keys."""
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in (SMALL | keys).items()))
    return path


def packlight(
    *arguments: Any, stdin: bytes = b"", own_process: bool = False, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Runs a command line to its end. A model may write any line end, so none is translated.

    It runs in this process, which saves the start of Python and of jax, unless `own_process` or variables, which come
    on top of this process's, ask for another one: for what is counted over a whole process, for memory and for pipes.
    """
    words = [*map(str, arguments)]
    if not own_process and not environment:
        return _run_here(words, stdin)
    done = subprocess.run(
        [*COMMAND, *words],
        env=os.environ | environment,
        cwd=ELSEWHERE,
        input=stdin,
        capture_output=True,
        timeout=300,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def _run_here(arguments: list[str], stdin: bytes) -> "subprocess.CompletedProcess[str]":
    """A command line in this process, with streams of its own; signals are handled afterwards as they were before.
    A machine that is slow has no more lines to say than another.
    """
    from packlight.cli import terminal
    from packlight.cli.main import main

    streams = [io.TextIOWrapper(io.BytesIO(each), encoding="utf-8", newline="") for each in (stdin, b"", b"")]
    _, out, errors = streams
    handlers = {number: signal.getsignal(number) for number in ENDING}
    before = sys.stdin
    code: Any = 0
    with (
        contextlib.chdir(ELSEWHERE),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        unittest.mock.patch.object(terminal, "PATIENCE", math.inf),
    ):
        sys.stdin = streams[0]
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
        except Exception:  # as the interpreter ends a process
            traceback.print_exc()
            code = 1
        finally:
            sys.stdin = before
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return subprocess.CompletedProcess([*COMMAND, *arguments], code, _written(out), _written(errors))


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()


def without_jax(folder: pathlib.Path, lines: Iterable[list[str]]) -> "list[subprocess.CompletedProcess[str]]":
    """Runs command lines one after another in one process in which importing jax is an error.

    folder: an empty one, for what stands in jax's place.
    """
    (folder / "jax.py").write_text("raise ImportError('jax was imported')\n")
    code = (
        "import json, running, sys\n"
        "json.dump([vars(running.packlight(*line)) for line in json.load(sys.stdin)], sys.stdout)"
    )
    path = os.pathsep.join([str(folder), str(ELSEWHERE), os.environ["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        input=json.dumps(list(lines)),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return [subprocess.CompletedProcess(**each) for each in json.loads(done.stdout)]


def succeed(
    *arguments: Any, stdin: bytes = b"", own_process: bool = False, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """`packlight`, asserting that it exits with 0."""
    done = packlight(*arguments, stdin=stdin, own_process=own_process, **environment)
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


def interrupt(
    folder: pathlib.Path, beginning: str, *arguments: Any, after: float = 0.0, number: int = signal.SIGINT
) -> "subprocess.CompletedProcess[str]":
    """Runs a command line and sends a signal once `folder` has a file whose name begins so, `after` so many seconds."""
    before = signal.signal(number, signal.SIG_DFL)  # the child inherits what the tests were told to ignore, as by nohup
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(number, before)
    while not any(path.name.startswith(beginning) for path in folder.iterdir()):
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(after)
    process.send_signal(number)
    # A compilation under way is heard of the key at its end: seconds of an idle machine, a minute of a busy one.
    text, errors = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, text, errors)
