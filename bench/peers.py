"""llama.cpp as a program to compare with: the worker `bench/peer.py`, or the binary llama-bench. Imports no jax."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from packlight.bench.cases import Case, Sample
from packlight.bench.worker import Worker, WorkerError
from packlight.common.errors import ConfigError
from packlight.common.text import reason

WORKER = pathlib.Path(__file__).parent / "peer.py"
UBATCH = 512  # tokens llama.cpp runs at a time, its default
KV_DTYPE = "float16"  # of its cache


def peer_python(named: str | None) -> str:
    """The interpreter for the worker: the one named, else this one. Raises ConfigError when neither will do."""
    if named:
        try:
            subprocess.run([named, "--version"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ConfigError(f"--peer_python={named} does not run: {error}") from None
        return named
    if importlib.util.find_spec("llama_cpp") is None:
        raise ConfigError(
            "--compare=llama.cpp needs llama-cpp-python: install the extra 'peers' (pip install 'packlight[peers]'), "
            "or name a Python that has it with --peer_python, or a llama-bench program with --llama_bench"
        )
    return sys.executable


class LlamaCpp(Worker):
    """llama-cpp-python in a worker process."""

    name = "llama.cpp"

    def __init__(self, python: str, model: str, threads: int, vocab: int):
        super().__init__(self.name, [python, str(WORKER)])
        self._vocab = vocab
        try:
            self.facts = self.ask(do="load", model=os.path.abspath(model), threads=threads)
        except WorkerError:
            self.__exit__()
            raise

    def can(self, case: Case) -> bool:
        return True

    def start(self, case: Case) -> None:
        prompts = case.prompts(self._vocab)
        self.ask(do="start", phase=case.phase, tokens=case.tokens, context=case.context, prompts=prompts)

    def run(self) -> Sample:
        answer = self.ask(do="run")
        return Sample(answer["seconds"], answer["gaps"])

    def stop(self) -> None:
        self.ask(do="stop")


class LlamaBench:
    """The program llama-bench, started anew for each repetition; it warms up before its clock starts."""

    name, pid = "llama.cpp", 0

    def __init__(self, program: str, model: str, threads: int):
        self._command = [program, "-m", model, "-t", str(threads), "-ngl", "0", "-r", "1", "-o", "json"]
        self.facts: dict[str, Any] = {"version": "llama-bench"}

    def __enter__(self) -> "LlamaBench":
        return self

    def __exit__(self, *_) -> None: ...

    def can(self, case: Case) -> bool:
        return case.batch == 1

    def start(self, case: Case) -> None:
        counts = (case.tokens, 0) if case.phase == "pp" else (0, case.tokens)
        depth = ["-d", str(case.depth)] if case.depth else []
        self._case = [*self._command, "-p", str(counts[0]), "-n", str(counts[1]), *depth]
        self._tokens = case.tokens

    def run(self) -> Sample:
        try:
            done = subprocess.run(self._case, capture_output=True, encoding="utf-8", errors="replace", check=True)
            (result,) = json.loads(done.stdout)
            self.facts["version"] = f"llama-bench, build {result['build_commit']}"
            return Sample(self._tokens / result["avg_ts"])
        except subprocess.CalledProcessError as error:
            said = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
            raise WorkerError(f"--llama_bench: {self._command[0]}: {said}") from None
        except OSError as error:
            raise WorkerError(f"--llama_bench={self._command[0]} does not run: {reason(error)}") from None
        except (ValueError, KeyError, TypeError, ZeroDivisionError):
            raise WorkerError(f"--llama_bench: {self._command[0]} printed no result that is understood") from None

    def stop(self) -> None: ...
