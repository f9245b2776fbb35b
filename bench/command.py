"""The `bench` command: says what is to be loaded, runs the cases on it, and makes one record of them."""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Sequence
from functools import cached_property
from typing import Any

import packlight
from packlight.bench import gate, traffic
from packlight.bench.cases import Case, embedding_cases, make_cases
from packlight.bench.machine import file_facts, machine, peak_rss, threads
from packlight.bench.measure import Limits, Runs, ratio, row
from packlight.bench.options import RECORD_KEYS, TWINS, Options, read_records
from packlight.bench.peers import KV_DTYPE, UBATCH, LlamaBench, LlamaCpp, peer_python
from packlight.bench.programs import Packlight
from packlight.bench.twin import write_twin
from packlight.bench.worker import Worker
from packlight.common.errors import ConfigError, ContextLengthError
from packlight.common.files import scratch_folder, whole_file
from packlight.common.text import reason
from packlight.prepared import Changes, Prepared, prepare

LIMITS = pathlib.Path(__file__).parent / "limits.py"


class Bench:
    """A measurement of the model at `path`: what is to be loaded for it, and, once that is there, the measurement.

    A context: at its end the files that it made for some paths are gone. Raises PacklightError for whatever a user can
    mend: file, config, lengths, peer.
    """

    def __init__(self, path: str, config: str | None, options: Options):
        self.path, self.options = path, options
        prepared = prepare(path, config)
        if prepared.model.generates:
            self.cases = make_cases(options.prompt_tokens, options.gen_tokens, options.batch, options.depth)
        else:
            self.cases = embedding_cases(options.prompt_tokens, options.batch)
        platform = prepared.config.platform
        if platform != "cpu" and options.compare:
            raise ConfigError(f"--compare runs llama.cpp on the CPU; the config's platform is {platform!r}")
        compared = options.compare and not options.llama_bench
        self._peer_python = peer_python(options.peer_python) if compared else None
        if options.gate is not None:
            gate.baseline(options.gate, file_facts(path)["sha256"])  # a mistake is told before minutes of measuring
        self._own = _fitted(prepared, self.cases)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def prepared(self) -> dict[str, Prepared]:
        """Kernel path -> what to load for it: the config's own first, then the others that were asked for."""
        config = self._own.config
        found = {config.kernel_path: self._own}
        for path in self.options.paths:
            if path not in found and path in TWINS:
                twin = dataclasses.replace(config, cpu_kernels="xla") if config.platform == "cpu" else config
                found[path] = prepare(self._twin(path), twin)
            elif path not in found:
                variant = dataclasses.replace(config, cpu_kernels=path)
                found[path] = dataclasses.replace(self._own, named=variant)
        return found

    def measure(self, llms: "Sequence[packlight.LLM]") -> Generator[str, None, dict[str, Any]]:
        """Measures the models that were loaded from `prepared`, in that order, each with weights of its own.

        Yields a line of progress for every case; the record is the generator's return value.
        """
        ours = [Packlight(name, llm) for name, llm in zip(self.prepared, llms, strict=True)]
        with contextlib.ExitStack() as stack:
            peer = self._peer(stack)
            limits = _limits(llms[0], stack)
            runs = Runs()
            for case in self.cases:
                runs.take(case, [*ours, *([peer] if peer else [])], self.options.reps, limits)
                yield _progress(case, runs)
            return _record(self.path, self.cases, ours, peer, runs)

    def _peer(self, stack: contextlib.ExitStack) -> LlamaBench | LlamaCpp | None:
        if self.options.llama_bench:
            return stack.enter_context(LlamaBench(self.options.llama_bench, self.path, threads()))
        if self._peer_python:
            vocab = self._own.model.vocab_size
            return stack.enter_context(LlamaCpp(self._peer_python, self.path, threads(), vocab))
        return None

    def _twin(self, path: str) -> str:
        """The same model with unpacked matrices, in a file that is gone with the context."""
        folder = self._stack.enter_context(scratch_folder(tempfile.gettempdir(), "packlight-bench"))
        return write_twin(self._own.file, os.path.join(folder, f"{path}.gguf"), TWINS[path])


def _limits(llm: "packlight.LLM", stack: contextlib.ExitStack) -> Limits:
    """What measures the best that the machine can do: the accelerator's copy and product, or the CPU's."""
    if llm.config.platform == "cpu":
        return stack.enter_context(Worker("limits", [sys.executable, "-P", str(LIMITS), str(threads())]))
    from packlight.bench.accelerator import Accelerator

    return Accelerator(llm.device)


def _fitted(prepared: Prepared, cases: Sequence[Case]) -> Prepared:
    """The same file under its config with the context and the slots that the cases need."""
    longest = max(case.context for case in cases)
    if longest > prepared.model.longest_context:
        raise ContextLengthError(
            f"these lengths need a context of {longest}; the model has {prepared.model.longest_context}: "
            "lower --depth, --prompt_tokens or --gen_tokens"
        )
    each = prepared.config.tokens_per_launch
    if any(case.phase == "tg" and case.tokens % each for case in cases):
        raise ConfigError(f"--gen_tokens is no multiple of config key 'tokens_per_launch', {each}")
    batches = tuple(sorted({1, *(case.batch for case in cases if case.phase == "tg")}))
    fitted = dataclasses.replace(prepared.config, context=longest, decode_batch=batches)
    return dataclasses.replace(prepared, named=fitted, changes=Changes())


def _progress(case: Case, runs: Runs) -> str:
    def mean(samples: Sequence[Any]) -> float:
        return case.batch * case.tokens * len(samples) / sum(sample.seconds for sample in samples)

    rates = [f"{name} {mean(samples):,.1f}" for name, samples in runs.samples[case.name].items()]
    return f"{case.name}: {', '.join(rates)} tokens/s"


def _rows(
    cases: Sequence[Case], name: str, llm: "packlight.LLM", runs: Runs, peer: bool = False
) -> list[dict[str, Any]]:
    """The results of one program; a peer's traffic is that of the same file with its own cache and chunks."""
    kv_dtype = KV_DTYPE if peer else llm.config.kv_dtype
    rows = []
    for case in cases:
        if samples := runs.samples[case.name].get(name):
            chunks: list[int] = []
            if case.phase == "pp" and peer:
                chunks = [min(UBATCH, case.tokens - at) for at in range(0, case.tokens, UBATCH)]
            elif case.phase == "emb":
                chunks = [case.tokens] * case.batch
            elif case.phase == "pp":
                chunks = [chunk.count for chunk in llm.plan.chunks(0, case.tokens)]
            moved = traffic.moved(case, llm.file, llm.model, chunks, kv_dtype)
            rows.append(row(case, samples, moved, traffic.flops(case, llm.file, llm.model), runs.limits))
    return rows


def _record(path: str, cases: Sequence[Case], ours: Sequence[Packlight], peer: Any, runs: Runs) -> dict[str, Any]:
    main = ours[0]
    llm = main.llm
    record: dict[str, Any] = {
        **file_facts(path),
        "model": llm.model.name,
        "formats": packlight.format_totals(llm.file),
        "machine": machine(),
        "backend": llm.device.platform,
        "device": llm.device.device_kind,
        "kernels": main.name,
        "threads": threads(),
        "limits": runs.limits,
        "results": _rows(cases, main.name, llm, runs),
        "ratios": {},
        "timings": llm.timings,
        "compile": {"hits": llm.executables.hits, "misses": llm.executables.misses},
        "memory": {"weights_bytes": llm.weights_bytes, "kv_bytes": llm.kv_bytes, "peak_rss_bytes": peak_rss()},
        "kv_dtype": llm.config.kv_dtype,
        "coverage": coverage(llm),
        "idle": {name: idle.share for name, idle in runs.idle.items()},
    }
    if peer is not None:
        both = [case for case in cases if peer.name in runs.samples[case.name]]
        details = {case.name: _ratio(case, runs, main.name, peer.name) for case in both}
        record["peer"] = {
            "name": peer.name,
            **peer.facts,
            "results": _rows(cases, peer.name, llm, runs, peer=True),
            "peak_rss_bytes": peak_rss(peer.pid) if peer.pid else None,
        }
        record["ratios"] = {name: detail["median"] for name, detail in details.items()}
        record["ratio_details"] = details
    if len(ours) > 1:
        record["paths"] = [_path(cases, program, main, runs) for program in ours]
    return record


def _path(cases: Sequence[Case], program: Packlight, main: Packlight, runs: Runs):
    return {
        "path": program.name,
        "weights_bytes": program.llm.weights_bytes,
        "results": _rows(cases, program.name, program.llm, runs),
        "main_over_this": {case.name: _ratio(case, runs, main.name, program.name) for case in cases},
        "coverage": coverage(program.llm),
        "timings": program.llm.timings,
    }


def _ratio(case: Case, runs: Runs, ours: str, theirs: str) -> dict[str, Any]:
    samples = runs.samples[case.name]
    return ratio(case, samples[ours], samples[theirs])


def coverage(llm: "packlight.LLM") -> dict[str, dict[str, int]]:
    """Kernel path -> tensors and bytes it reads, of every tensor of the file, embedding, head and vectors included."""
    tensors: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for name, path in llm.kernel_paths().items():
        tensors[path] += 1
        nbytes[path] += llm.file.tensors[name].nbytes
    return {path: {"tensors": tensors[path], "bytes": nbytes[path]} for path, _ in nbytes.most_common()}


def append(path: str, record: dict[str, Any], keys: Sequence[str] = RECORD_KEYS) -> None:
    """Adds a record to the JSON list at `path`, of records with `keys`; the file is replaced whole."""
    records = [*read_records(path, "results", True, keys), record]
    try:
        with whole_file(path) as partial:
            pathlib.Path(partial).write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--results={path}: {reason(error)}") from None
