"""packlight at the terminal: `python run.py COMMAND [--flags]`, also installed as `packlight`.

stdout carries the command's product and nothing else; progress, plan and timings go to stderr. A user's mistake is
one line `error: ...` and exit code 2. It knows flags and terminals; everything else is `packlight`'s.
"""

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from quant.errors import ConfigError, PacklightError

EXIT_MISTAKE, EXIT_INTERRUPTED = 2, 130


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: its name, what it does in a line, an example, its flags and its function."""

    name: str
    summary: str
    example: str
    define: Callable[[flags.FlagValues], None]
    run: Callable[[flags.FlagValues], None]


def _model_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", None, "GGUF file to run; for a split one, its first part.", flag_values=values)
    flags.DEFINE_string(
        "config", None, "TOML file that says what to compile (default: the one for this platform).", flag_values=values
    )
    flags.DEFINE_integer("context", None, "Tokens of prompt and answer together.", flag_values=values)
    _json_flag(values)


def _json_flag(values: flags.FlagValues) -> None:
    flags.DEFINE_bool("json", False, "Print one JSON object instead of text.", flag_values=values)


def _generate_flags(values: flags.FlagValues) -> None:
    _model_flags(values)
    flags.DEFINE_string("prompt", None, "Text to continue.", flag_values=values)
    flags.DEFINE_integer("max_tokens", None, "Tokens to generate at most (default: until the end).", flag_values=values)
    flags.DEFINE_float("temperature", 0.8, "0 is greedy.", flag_values=values)
    flags.DEFINE_integer("top_k", 40, "Keep the k most probable tokens; 0 is off.", flag_values=values)
    flags.DEFINE_float("top_p", 0.95, "Keep the most probable tokens that reach p; 1 is off.", flag_values=values)
    flags.DEFINE_float("min_p", 0.05, "Keep tokens at least min_p times the best; 0 is off.", flag_values=values)
    flags.DEFINE_integer("seed", None, "Seed of the draws (default: a random one).", flag_values=values)
    flags.DEFINE_multi_string("stop", [], "End at this text; may be given several times.", flag_values=values)


def _inspect_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", None, "GGUF file to look into.", flag_values=values)
    _json_flag(values)


def generate(values: flags.FlagValues) -> None:
    """Writes the continuation of a prompt as it is generated, or one JSON object with everything about it."""
    if values.prompt is None:
        raise ConfigError("--prompt is missing: the text to continue")
    sampling: dict[str, Any] = {
        key: values[key].value for key in ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop")
    }
    from model.sampling import SamplingConfig

    SamplingConfig(**sampling)  # a bad value is refused before anything is loaded
    llm = _load(values)
    if not values.json:
        stream = llm.stream(values.prompt, **sampling)
        while True:
            try:
                _write(next(stream))
            except StopIteration as end:
                completion = end.value
                break
        _write("\n")
        _say(_speed(completion))
        return
    completion = llm.generate(values.prompt, **sampling)
    from compile.aot import compile_count

    executables = llm.executables
    report = {
        **dataclasses.asdict(completion),
        "timings": {**llm.timings, **completion.timings},
        "memory": {
            "weights_bytes": llm.weights_bytes,
            "kv_bytes": llm.kv_bytes,
            "peak_rss_bytes": _peak_rss(),
        },
        "compile": {"hits": executables.hits, "misses": executables.misses, "compiled": compile_count()},
        "plan": llm.kernel_paths(),
    }
    _write(json.dumps(report, ensure_ascii=False) + "\n")


def inspect(values: flags.FlagValues) -> None:
    """Prints what is in a file: hyperparameters, metadata, each tensor with its kernel path, totals, problems."""
    import packlight

    report = packlight.inspect(_model_path(values))
    report["metadata"] = {key: _short(value) for key, value in report["metadata"].items()}
    if values.json:
        _write(json.dumps(report, ensure_ascii=False) + "\n")
        return
    _write(_inspect_text(report))


def compile_(values: flags.FlagValues) -> None:
    """Builds and stores every executable of a config; prints a table of them."""
    from compile import aot
    from model.declaration import formats

    prepared = _prepare(values)
    from model.params import abstract

    device = aot.find_device(prepared.config)
    params = abstract(prepared.model, formats(prepared.file))
    with _Bar("compile", len(prepared.plan.steps)) as bar:
        executables = aot.build(
            prepared.model, prepared.config, prepared.plan, params, device, lambda built: bar.add(1)
        )
    _warn(executables.warnings)
    rows = [
        {"step": str(b.key), "hit": b.hit, **{k: v for k, v in vars(b).items() if k not in ("key", "call", "hit")}}
        for b in executables.built.values()
    ]
    if values.json:
        report = {"hits": executables.hits, "misses": executables.misses, "compiled": aot.compile_count()}
        _write(json.dumps({"executables": rows, "compile": report}) + "\n")
        return
    lines = [f"{'step':<22}{'':<6}{'seconds':>8}{'arguments MB':>14}{'scratch MB':>12}{'GFLOP':>9}{'GB moved':>10}"]
    lines += [
        f"{r['step']:<22}{'hit' if r['hit'] else 'miss':<6}{r['seconds']:>8.2f}{r['argument_bytes'] / 1e6:>14.1f}"
        f"{r['scratch_bytes'] / 1e6:>12.2f}{r['flops'] / 1e9:>9.2f}{r['bytes_accessed'] / 1e9:>10.2f}"
        for r in rows
    ]
    _write("\n".join(lines) + "\n")


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "generate",
            "write the continuation of a prompt",
            "packlight generate --model=model.gguf --prompt='Once upon a time' --max_tokens=64",
            _generate_flags,
            generate,
        ),
        Command("inspect", "show what is in a file", "packlight inspect --model=model.gguf", _inspect_flags, inspect),
        Command(
            "compile",
            "build and store the executables of a config",
            "packlight compile --model=model.gguf --config=configs/cpu.toml",
            _model_flags,
            compile_,
        ),
    )
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command line and exits: 0, or 2 after a line `error: ...` for a user's mistake."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `packlight ... | head` ends quietly
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        _dispatch(arguments)
    except PacklightError as error:
        _say(f"error: {error}")
        _leave(EXIT_MISTAKE)
    except KeyboardInterrupt:
        sys.stdout.flush()
        _say("interrupted")
        _leave(EXIT_INTERRUPTED)


def _dispatch(arguments: list[str]) -> None:
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "generate"
    if name == "help" or (not arguments and name == "generate"):
        arguments, name = ["--help"], "generate"
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}; there are: {', '.join(COMMANDS)}")
    if {"--help", "-h", "-help"} & set(arguments):
        _write(_help())
        return
    command = COMMANDS[name]
    values = flags.FlagValues()
    command.define(values)
    values.set_gnu_getopt(True)
    try:
        stray = values([name, *arguments])[1:]
    except flags.Error as error:
        raise ConfigError(" ".join(str(error).split())) from None
    if stray:
        raise ConfigError(f"unexpected argument {stray[0]!r}; flags are written --name=value")
    command.run(values)


def _help() -> str:
    """All commands with their flags and an example each."""
    parts = ["packlight runs GGUF language models with JAX.\n\nusage: packlight COMMAND [--flag=value ...]\n"]
    for command in COMMANDS.values():
        values = flags.FlagValues()
        command.define(values)
        parts.append(f"\n{command.name}: {command.summary}\n    {command.example}\n")
        for name in values:
            default = values[name].default_unparsed if values[name].default not in (None, [], False) else None
            shown = f" (default: {default})" if default is not None else ""
            parts.append(f"  --{name:<13}{values[name].help}{shown}\n")
    return "".join(parts)


def _model_path(values: flags.FlagValues) -> str:
    if not values.model:
        raise ConfigError("--model is missing: the GGUF file to use")
    return values.model


def _prepare(values: flags.FlagValues) -> Any:
    """File, config and plan that the flags name, checked."""
    import packlight

    config = packlight.read_config(values.config) if values.config is not None else None
    return packlight.prepare(_model_path(values), config, values.context)


def _load(values: flags.FlagValues) -> Any:
    """The model that the flags name, with progress bars and the plan's first line on stderr."""
    import packlight

    prepared = _prepare(values)
    reading, compiling = _Bar("load", 1, bytes_=True), _Bar("compile", 1)
    with reading, compiling:
        llm = packlight.LLM(prepared, reading.to, compiling.to)
    mix = ", ".join(f"{name} x{entry['tensors']}" for name, entry in packlight.format_totals(llm.file).items())
    paths = ", ".join(sorted(set(llm.kernel_paths().values())))
    _say(
        f"{os.path.basename(llm.file.path)}: {llm.model.architecture.name}, {mix}; {llm.device.device_kind}; "
        f"kernels {paths}; context {llm.plan.context}, {llm.plan.slots} slots; "
        f"executables {llm.executables.hits} stored, {llm.executables.misses} compiled"
    )
    _warn(llm.executables.warnings)
    return llm


class _Bar:
    """A progress bar on stderr, drawn only on a terminal and only once there is something to show."""

    def __init__(self, title: str, total: int, bytes_: bool = False):
        self._title, self._total, self._bytes, self._bar = title, total, bytes_, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()

    def to(self, _amount: Any, total: int) -> None:
        """Advances by an amount of bytes, or by one finished thing, towards `total`."""
        self._total = total
        self.add(_amount if self._bytes else 1)

    def add(self, amount: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            unit = {"unit": "B", "unit_scale": True} if self._bytes else {}
            self._bar = tqdm(total=self._total, desc=self._title, leave=False, disable=None, file=sys.stderr, **unit)
        self._bar.update(amount)


def _speed(completion: Any) -> str:
    """The line after a text: how much, how fast, why it ended."""
    t = completion.timings
    first = f", first token after {t['ttft_s']:.2f} s" if t["ttft_s"] is not None else ""
    rate = f", {t['decode_tok_s']:.1f} tokens/s" if t["decode_tok_s"] is not None else ""
    counts = f"{len(completion.prompt_token_ids)} + {len(completion.token_ids)} tokens"
    return f"{counts}{first}{rate}; ended by {completion.finish_reason}"


def _inspect_text(report: dict[str, Any]) -> str:
    lines = [f"{report['path']}: GGUF v{report['version']}, {report['file_bytes']:,} bytes"]
    lines += ["", "hyperparameters"]
    lines += [f"  {key:<24}{value}" for key, value in report["hyperparameters"].items()]
    lines += ["", "metadata"]
    lines += [f"  {key:<44}{value}" for key, value in report["metadata"].items()]
    lines += ["", f"{'tensor':<34}{'shape':<18}{'format':<9}{'bytes':>14}  kernel"]
    for t in report["tensors"]:
        shape = "x".join(map(str, t["shape"]))
        lines.append(f"{t['name']:<34}{shape:<18}{t['format']:<9}{t['bytes']:>14,}  {t['path'] or '-'}")
    lines += ["", f"{report['parameters']:,} parameters in {len(report['tensors'])} tensors"]
    lines += [f"  {name:<9}{f['tensors']:>5} tensors{f['bytes']:>16,} bytes" for name, f in report["formats"].items()]
    lines += ["", *(f"unsupported: {problem}" for problem in report["unsupported"] or ["nothing"])]
    return "\n".join(lines) + "\n"


def _short(value: Any) -> Any:
    """Long arrays by their length and first elements."""
    if isinstance(value, list) and len(value) > 8:
        return f"[{len(value)} elements: {', '.join(repr(v) for v in value[:4])}, ...]"
    return value


def _peak_rss() -> int:
    """The process's largest resident set so far, in bytes."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        _say(f"warning: {warning}")


def _leave(code: int) -> None:
    """Exits at once: a compilation under way in another thread is not waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
