"""packlight at the terminal: `python run.py COMMAND [--flags]`, also installed as `packlight`.

stdout carries the command's product and nothing else; progress, plan and timings go to stderr. A user's mistake is
one line `error: ...` and exit code 2. It knows flags and terminals; everything else is `packlight`'s.
"""

import contextlib
import dataclasses
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from absl import flags

from packlight import demo
from packlight.bench.options import FLAGS as BENCH_FLAGS
from packlight.bench.options import Options
from packlight.cli.terminal import (
    Bar,
    bench_text,
    compile_text,
    follow,
    inspect_text,
    perplexity_text,
    quantize_text,
    reserve_stdout,
    say,
    short,
    speed,
    target_text,
    warn,
    write,
    write_json,
)
from packlight.common.errors import ConfigError, PacklightError
from packlight.common.files import partial_path
from packlight.compile.config import read_config
from packlight.prepared import Prepared, prepare

if TYPE_CHECKING:
    import packlight  # at run time inside functions: --help and a bad flag need no numpy
    from packlight.compile.memory import Limit, MemoryPlan
    from packlight.compile.targets import targets

PERPLEXITY_CONTEXT = 512  # llama.cpp's
EXIT_SLOWER, EXIT_MISTAKE, EXIT_INTERRUPTED = 1, 2, 130

# Every flag: how absl defines it, its default, what it means. `COMMANDS` says which command has which.
FLAGS: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "model": (flags.DEFINE_string, None, "GGUF file; of a split one, its first part"),
    "prompt": (flags.DEFINE_string, None, "the text: to continue, or to embed"),
    "prompt_file": (flags.DEFINE_string, None, "file with the text to continue (default: what comes on stdin)"),
    "max_tokens": (flags.DEFINE_integer, None, "tokens to generate at most (default: until the end)"),
    "temperature": (flags.DEFINE_float, 0.8, "how freely tokens are drawn; 0 is greedy"),
    "top_k": (flags.DEFINE_integer, 40, "draw from the k most probable tokens; 0 is off"),
    "top_p": (flags.DEFINE_float, 0.95, "draw from the most probable tokens that reach p; 1 is off"),
    "min_p": (flags.DEFINE_float, 0.05, "draw from tokens at least min_p times the best; 0 is off"),
    "top_n_sigma": (flags.DEFINE_float, -1.0, "draw from logits within n standard deviations of the best; -1 is off"),
    "typical_p": (flags.DEFINE_float, 1.0, "draw from the tokens of typical surprise that hold p; 1 is off"),
    "xtc_probability": (flags.DEFINE_float, 0.0, "how often to drop the most probable tokens (XTC); 0 is off"),
    "xtc_threshold": (flags.DEFINE_float, 0.1, "probability from which XTC drops all tokens but one"),
    "dynatemp_range": (flags.DEFINE_float, 0.0, "vary the temperature by this much with the entropy; 0 is off"),
    "dynatemp_exponent": (flags.DEFINE_float, 1.0, "how entropy maps to the temperature"),
    "repeat_penalty": (flags.DEFINE_float, 1.0, "divide the logits of recent tokens by this; 1 is off"),
    "frequency_penalty": (flags.DEFINE_float, 0.0, "take this off a recent token's logit each time it occurs"),
    "presence_penalty": (flags.DEFINE_float, 0.0, "take this off a recent token's logit once"),
    "repeat_last_n": (flags.DEFINE_integer, 64, "tokens that count as recent; -1 is all"),
    "dry_multiplier": (flags.DEFINE_float, 0.0, "penalty on tokens that go on repeating a sequence (DRY); 0 is off"),
    "dry_base": (flags.DEFINE_float, 1.75, "DRY: growth of the penalty per token"),
    "dry_allowed_length": (flags.DEFINE_integer, 2, "DRY: length of a sequence that may repeat freely"),
    "dry_penalty_last_n": (flags.DEFINE_integer, 64, "DRY: tokens to look for repetitions in; -1 is all"),
    "dry_sequence_breakers": (
        flags.DEFINE_multi_string,
        ["\n", ":", '"', "*"],
        "DRY: a text no repetition reaches over",
    ),
    "mirostat": (flags.DEFINE_integer, 0, "Mirostat version 1 or 2 in place of the other steps; 0 is off"),
    "mirostat_tau": (flags.DEFINE_float, 5.0, "Mirostat: surprise to aim at, in bits"),
    "mirostat_eta": (flags.DEFINE_float, 0.1, "Mirostat: learning rate"),
    "logit_bias": (
        flags.DEFINE_multi_string,
        [],
        "TOKEN_ID+BIAS or TOKEN_ID-BIAS, also -inf; may be given several times",
    ),
    "ignore_eos": (flags.DEFINE_bool, False, "forbid the tokens that end a text"),
    "json_schema": (flags.DEFINE_string, None, "write JSON that matches this schema; @FILE reads it from a file"),
    "regex": (flags.DEFINE_string, None, "write text that matches this regular expression"),
    "grammar": (flags.DEFINE_string, None, "write text that matches this grammar (GBNF or Lark); @FILE reads a file"),
    "logprobs": (flags.DEFINE_integer, None, "with --json: log-probabilities of the n most probable tokens, up to 20"),
    "seed": (flags.DEFINE_integer, None, "seed of the draws (default: a random one, which is shown)"),
    "stop": (flags.DEFINE_multi_string, [], "end before this text; may be given several times"),
    "config": (flags.DEFINE_string, None, "TOML file that says what to compile (default: this platform's)"),
    "coordinator": (flags.DEFINE_string, None, "host:port of process 0, when several processes run one model together"),
    "num_processes": (flags.DEFINE_integer, None, "how many processes there are; the config's mesh spans them all"),
    "process_id": (flags.DEFINE_integer, None, "number of this process; 0 writes the text"),
    "target": (
        flags.DEFINE_string,
        None,
        "hardware to compile for, here or not: cpu, cuda:h100, cuda:h200, tpu:v5e, tpu:v5e:2x2, tpu:v5p, tpu:v6e",
    ),
    "type": (flags.DEFINE_string, None, "what to quantize to: Q4_0, Q8_0, Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M, Q6_K or F16"),
    "out": (flags.DEFINE_string, None, "file to write (default: the model's name with the type in it)"),
    "context": (flags.DEFINE_integer, None, "tokens of prompt and answer together (default: the config's)"),
    "system": (flags.DEFINE_string, None, "system message that a chat begins with"),
    "file": (flags.DEFINE_string, None, "text file: to predict, or of texts to embed, one a line"),
    "chunks": (flags.DEFINE_integer, None, "chunks of the text to use at most (default: all)"),
    "pooling": (
        flags.DEFINE_string,
        None,
        "how the vectors of a text's tokens become one: mean or last (default: as the file says, or mean)",
    ),
    "save_logits": (flags.DEFINE_string, None, "write the predictions to this file, as a base for --kl_divergence"),
    "kl_divergence": (flags.DEFINE_string, None, "compare with the predictions in this file; its text is used"),
    "chat_template": (flags.DEFINE_string, None, "file with a chat template, instead of the model's own"),
    "json": (flags.DEFINE_bool, False, "print one JSON object instead of text"),
    **BENCH_FLAGS,
}
SAMPLING = (
    *("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "top_n_sigma", "typical_p"),
    *("xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exponent", "repeat_penalty", "frequency_penalty"),
    *("presence_penalty", "repeat_last_n", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
    *("dry_sequence_breakers", "mirostat", "mirostat_tau", "mirostat_eta", "logit_bias", "ignore_eos"),
    *("json_schema", "regex", "grammar"),
)
PROCESSES = ("coordinator", "num_processes", "process_id")
FLAG_TYPES = {"int": "an integer", "float": "a number", "bool": "true or false"}


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: its name, what it does in a line, an example, the names of its flags and its function."""

    name: str
    summary: str
    example: str
    takes: tuple[str, ...]
    run: Callable[[flags.FlagValues], None]

    def define(self) -> flags.FlagValues:
        """The command's flags, not parsed yet."""
        values = flags.FlagValues()
        for name in self.takes:
            define, default, text = FLAGS[name]
            define(name, default, text, flag_values=values)
        return values

    def help(self) -> str:
        lines = [f"{self.name}: {self.summary}", f"    {self.example}"]
        width = max(map(len, self.takes)) + 1
        for name in self.takes:
            _, default, text = FLAGS[name]
            lines.append(f"  --{name:<{width}}{text}" + (f" (default: {default})" if default else ""))
        return "\n".join(lines) + "\n"


def generate(values: flags.FlagValues) -> None:
    """Writes the continuation of a prompt as it is generated, or one JSON object with everything about it."""
    text = _prompt_text(values)
    from packlight.model.sampling.config import SamplingConfig

    sampling = _sampling(values) | {"logprobs": values.logprobs}
    if values.logprobs is not None and not values.json:
        raise ConfigError("--logprobs is for --json, which is missing")
    config = SamplingConfig(**sampling).with_seed()  # bad values are refused before anything is read
    sampling["seed"] = config.seed
    prepared = _prepare(values)
    prepared.prompts.check_sampling(config)
    prompt = prepared.prompts.answerable(text)
    _join(values, prepared)
    llm = _load(prepared)
    completion = follow(llm.stream(prompt, **sampling), (lambda piece: None) if values.json else write)
    if values.json:
        write_json(_generate_report(llm, completion) | {"seed": sampling["seed"]})
    else:
        write("\n")
        say(speed(completion) + (f"; seed {sampling['seed']}" if values.temperature else ""))


def chat(values: flags.FlagValues) -> None:
    """Talks with the model in its own chat template until the input ends."""
    from packlight.cli.conversation import Conversation, read_line
    from packlight.model.sampling.config import SamplingConfig
    from packlight.model.text.chat import template_of

    sampling = _sampling(values)
    config = SamplingConfig(**sampling)  # bad values are refused before anything is read
    template = None if values.chat_template is None else _file_text("chat_template", values.chat_template)
    system = None if values.system is None else _text("system", values.system)
    _model_path(values)  # the embedded one has no chat template
    prepared = _prepare(values)
    prepared.prompts.check_sampling(config)
    if template is None:
        template_of(prepared.file.metadata, os.path.basename(prepared.file.path))
    talk = Conversation(_load(prepared), template, system, sampling)
    if sys.stdin.isatty():
        say("/help lists the commands, Ctrl-D ends")
        signal.signal(signal.SIGINT, signal.default_int_handler)
    talk.run(read_line)


def inspect(values: flags.FlagValues) -> None:
    """Prints what is in a file: hyperparameters, metadata, each tensor with its kernel path, totals, problems."""
    import packlight

    report = packlight.inspect(_model_or_demo(values))
    report["metadata"] = {key: short(value) for key, value in report["metadata"].items()}
    if values.json:
        write_json(report)
    else:
        write(inspect_text(report))


def compile_(values: flags.FlagValues) -> None:
    """Builds and stores every executable of a config, for this machine or another; prints a table of them."""
    from packlight.compile.targets import targets

    target = None if values.target is None else targets.parse(values.target)
    prepared = _prepare(values, target=target)
    limit = _limit(prepared, target)
    _say_memory(prepared, limit)
    from packlight.compile import aot
    from packlight.compile.kernels import attention_names
    from packlight.compile.targets import report
    from packlight.model.spec.weights import formats
    from packlight.model.weights.params import abstract

    there = target if target is not None and target.chip is not None else None
    config, split = prepared.config, prepared.split
    if there is None:
        placement = aot.find_devices(config, split)
    else:
        placement = aot.place_on(targets.devices(there), split, f"--target={there.name}")
    params = abstract(prepared.model, formats(prepared.file), prepared.layout, placement)
    attention = attention_names(config, prepared.model, placement.flat[0])
    say(f"{placement.flat[0].device_kind}: attention {attention}")
    with Bar() as bar:
        bar.start("compile", len(prepared.plan.steps), unit="step")
        executables = aot.build(
            *(prepared.model, config, prepared.plan, params, placement),
            lambda _: bar.advance(1),
            load=there is None,
        )
    warn([*prepared.warnings, *executables.warnings])
    memory = dataclasses.replace(prepared.memory, scratch=executables.scratch_bytes)
    say(f"memory with scratch: {memory}")
    file, model, kv_dtype = prepared.file, prepared.model, prepared.config.kv_dtype
    rows = [
        report.step_row(built)
        if target is None
        else report.target_row(built, target, file, model, kv_dtype, split, memory, limit)
        for built in executables.built.values()
    ]
    if values.json:
        counts = {"hits": executables.hits, "misses": executables.misses, "compiled": aot.compile_count()}
        result = {"executables": rows, "compile": counts, "memory": _memory_report(memory, limit)}
        result["attention"] = attention
        write_json(result | ({"target": dataclasses.asdict(target)} if target else {}))
    else:
        write(compile_text(rows) if target is None else target_text(rows))
    if limit is not None:
        limit.check(memory, os.path.basename(prepared.file.path))


def quantize(values: flags.FlagValues) -> None:
    """Writes a smaller file from one of floats."""
    from packlight.quantization import quantize_file

    path = _model_path(values)
    if values.type is None:
        raise ConfigError("--type is missing: what to quantize to, such as Q4_K_M")
    out = values.out or f"{os.path.splitext(path)[0]}-{values.type}.gguf"
    with _unwound(out), Bar() as bar:
        bar.start("quantize", os.path.getsize(path) if os.path.isfile(path) else 0, unit="B", unit_scale=True)
        report = quantize_file(path, values.type, out, bar.advance)
    if values.json:
        write_json(report)
    else:
        write(quantize_text(report))


def perplexity(values: flags.FlagValues) -> None:
    """Measures how well the model predicts a text, in chunks of --context tokens as llama.cpp cuts it."""
    from packlight.perplexity import Base, cut, divergence, measure

    if (values.file is None) == (values.kl_divergence is None):
        raise ConfigError("give either --file, a text to predict, or --kl_divergence, predictions to compare with")
    if values.kl_divergence is not None and (values.save_logits is not None or values.context is not None):
        raise ConfigError("--kl_divergence takes text and context from its file: no --save_logits, no --context")
    length = PERPLEXITY_CONTEXT if values.context is None else values.context
    for flag, value, least in (("chunks", values.chunks, 1), ("context", length, 4)):
        if value is not None and value < least:
            raise ConfigError(f"--{flag}={value} is less than {least}")
    text = None if values.file is None else _file_text("file", values.file)
    base = None if values.kl_divergence is None else Base.open(values.kl_divergence)
    if base is not None:
        length = base.tokens.shape[1]
    prepared = _prepare(values, length)
    if base is not None:
        base.check(prepared.model.vocab_size)
        chunks = min(len(base.tokens), values.chunks or len(base.tokens))
        steps = divergence(_load(prepared), base, chunks)
    else:
        tokens = cut(prepared.tokenizer, text or "", length, values.chunks)
        chunks = len(tokens)
        steps = measure(_load(prepared), tokens, values.save_logits)
    result: dict[str, Any] = {}
    with _unwound(values.save_logits), contextlib.closing(steps), Bar() as bar:
        bar.start("predict", chunks, unit="chunk")
        for so_far in steps:
            result = so_far
            bar.advance(1)
    result |= {"chunks": chunks, "context": length}
    if values.json:
        write_json(result)
    else:
        write(perplexity_text(result))


def embed(values: flags.FlagValues) -> None:
    """Prints a vector of length 1 for each text: a line of numbers, or one JSON object."""
    from packlight.model.spec.pooling import pooling_of

    if (values.file is None) == (values.prompt is None):
        raise ConfigError("give either --prompt, a text, or --file, of texts one a line")
    if values.file is None:
        texts = [_text("prompt", values.prompt)]
    else:
        texts = [line for line in _file_text("file", values.file).splitlines() if line.strip()]
        if not texts:
            raise ConfigError(f"--file={values.file}: holds no text")
    prepared = _prepare(values)
    pooling = pooling_of(prepared.model, values.pooling)
    for text in texts:
        prepared.prompts.fitting(text)
    vectors = _load(prepared).embed(texts, pooling).tolist()
    if values.json:
        write_json({"embeddings": vectors, "pooling": pooling, "dimensions": len(vectors[0])})
    else:
        write("".join(" ".join(f"{x:.8g}" for x in vector) + "\n" for vector in vectors))


def bench(values: flags.FlagValues) -> None:
    """Measures speed, alone or in turn with llama.cpp; prints a table, or the record as one JSON object."""
    path, options = _model_path(values), Options.of(values)
    from packlight.bench import command, gate

    record = command.bench(path, values.config, options, _load, say)
    if values.json:
        write_json(record)
    else:
        write(bench_text(record))
    verdict = gate.judge(record, options.gate) if options.gate is not None else None
    if options.results is not None:
        command.append(options.results, record)
    if verdict is not None:
        say(verdict.text)
        if not verdict.passed:
            sys.exit(EXIT_SLOWER)


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "generate",
            "write the continuation of a prompt (what is done when no command is named)",
            "packlight generate --model=model.gguf --prompt='Once upon a time' --max_tokens=64",
            ("model", "prompt", "prompt_file", *SAMPLING, "logprobs", "config", "context", *PROCESSES, "json"),
            generate,
        ),
        Command(
            "chat",
            "talk with a model in its own chat template",
            "packlight chat --model=model.gguf --system='Answer in one sentence.'",
            ("model", "system", "chat_template", *SAMPLING, "config", "context"),
            chat,
        ),
        Command(
            "inspect",
            "show what is in a file, and what of it is unsupported",
            "packlight inspect --model=model.gguf",
            ("model", "json"),
            inspect,
        ),
        Command(
            "compile",
            "build and store the executables of a config, also for hardware that is not here",
            "packlight compile --model=model.gguf --target=cuda:h200",
            ("model", "config", "target", "context", "json"),
            compile_,
        ),
        Command(
            "quantize",
            "write a smaller file from one of F32, F16 or BF16 weights",
            "packlight quantize --model=model-f16.gguf --type=Q4_K_M",
            ("model", "type", "out", "json"),
            quantize,
        ),
        Command(
            "embed",
            "turn texts into vectors",
            "packlight embed --model=model.gguf --prompt='A text'",
            ("model", "prompt", "file", "pooling", "config", "context", "json"),
            embed,
        ),
        Command(
            "perplexity",
            "measure how well a model predicts a text, alone or against another model's predictions",
            "packlight perplexity --model=model.gguf --file=text.txt",
            ("model", "file", "context", "chunks", "save_logits", "kl_divergence", "config", "json"),
            perplexity,
        ),
        Command(
            "bench",
            "measure speed, alone or in turn with llama.cpp",
            "packlight bench --model=model.gguf --compare=llama.cpp",
            ("model", *BENCH_FLAGS, "config", "json"),
            bench,
        ),
    )
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command line; exits with 2 after a line `error: ...` for a user's mistake."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `packlight ... | head` ends quietly
    signal.signal(signal.SIGINT, _interrupted)
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        stream.reconfigure(encoding="utf-8", errors=errors)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        _dispatch(list(sys.argv[1:] if argv is None else argv))
    except PacklightError as error:
        say("error: " + " ".join(str(error).split()))
        sys.exit(EXIT_MISTAKE)


def _interrupted(*_) -> NoReturn:
    """Ctrl-C: exits at once, as a compilation under way in another thread would not stop for an exception."""
    os.write(2, b"\ninterrupted\n")  # not by sys.stderr, which may be in the middle of a write
    os._exit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def _unwound(path: str | None) -> Iterator[None]:
    """Ctrl-C inside also removes the unfinished file at `path`.

    It is no exception: jax swallows one in its callback for garbage collection, and crashes on one during its import.
    """

    def leave(*_) -> NoReturn:
        if path is not None:
            with contextlib.suppress(OSError):
                os.unlink(partial_path(path))
        _interrupted()

    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _interrupted)


def _dispatch(arguments: list[str]) -> None:
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments.pop(0) if named else "generate"
    if name == "help":
        arguments, named = ["--help"], False
    elif name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}; there are: {', '.join(COMMANDS)}")
    if {"--help", "-help", "-h"} & set(arguments):
        write(COMMANDS[name].help() if named else _help())
        return
    command = COMMANDS[name]
    command.run(_parse(command, arguments))


def _parse(command: Command, arguments: list[str]) -> flags.FlagValues:
    """The command's flags with the values that the arguments give. Raises ConfigError naming what does not belong."""
    values = command.define()
    values.set_gnu_getopt(True)
    try:
        for argument in arguments:  # two flags that absl takes unasked: the first reads a file, the second hides typos
            if unasked := re.match("--?(flagfile|undefok)(=|$)", argument):
                raise flags.UnrecognizedFlagError(unasked[1])
        stray = values([command.name, *arguments])[1:]
    except flags.IllegalFlagValueError as error:
        said = str(error).removesuffix(f": {error.__context__}")  # "flag --top_k=x: invalid literal for int() ..."
        kind = values[said.removeprefix("flag --").split("=")[0]].flag_type()
        raise ConfigError(f"{said} is not {FLAG_TYPES.get(kind, kind)}") from None
    except flags.Error as error:
        raise ConfigError(f"{error}; see packlight {command.name} --help") from None
    if stray:
        raise ConfigError(f"unexpected argument {stray[0]!r}; flags are written --name=value")
    return values


def _help() -> str:
    """All commands with their flags and an example each."""
    head = (
        "packlight runs GGUF language models with JAX.\n\nusage: packlight COMMAND [--flag=value ...]\n\n"
        "Without --model, generate, inspect, compile, embed and perplexity use the embedded demo model.\n"
    )
    return "\n".join([head, *(command.help() for command in COMMANDS.values())])


def _sampling(values: flags.FlagValues) -> dict[str, Any]:
    """The fields of a sampling config that the flags name; texts are read and split, numbers not checked."""
    sampling: dict[str, Any] = {name: values[name].value for name in SAMPLING}
    for name in ("stop", "dry_sequence_breakers"):
        sampling[name] = [_text(name, text) for text in sampling[name]]
    for name in ("json_schema", "regex", "grammar"):
        if sampling[name] is not None:
            text = _text(name, sampling[name])
            sampling[name] = _file_text(name, text[1:]) if text.startswith("@") and name != "regex" else text
    biases = {}
    for given in sampling["logit_bias"]:
        parts = re.fullmatch(r"(\d+)([+-](?:\d+\.?\d*|\.\d+|inf))", given)
        if parts is None:
            raise ConfigError(f"--logit_bias={given} is not TOKEN_ID+BIAS or TOKEN_ID-BIAS")
        biases[int(parts[1])] = float(parts[2])
    return sampling | {"logit_bias": biases}


def _prompt_text(values: flags.FlagValues) -> str:
    """The text to continue: a flag's, a file's, or what is piped in; a file's last line end is not part of it."""
    if values.prompt is not None and values.prompt_file is not None:
        raise ConfigError("give either --prompt or --prompt_file")
    if values.prompt is not None:
        return _text("prompt", values.prompt)
    if values.prompt_file is not None:
        return _file_text("prompt_file", values.prompt_file).removesuffix("\n")
    try:
        text = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeError:
        raise ConfigError("stdin is not UTF-8 text") from None
    if not text and values.model is not None:
        raise ConfigError("--prompt is missing: the text to continue")
    if not text:
        say(f"no --prompt: continuing {demo.PROMPT!r}")
    return text or demo.PROMPT


def _text(flag: str, value: str) -> str:
    """An argument as UTF-8, whatever the locale took its bytes for."""
    try:
        return os.fsencode(value).decode()
    except UnicodeError:
        raise ConfigError(f"--{flag} is not UTF-8 text") from None


def _file_text(flag: str, path: str) -> str:
    """The text of a file that a flag names."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"--{flag}={path}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"--{flag}={path}: not UTF-8 text") from None


def _model_path(values: flags.FlagValues) -> str:
    if not values.model:
        raise ConfigError("--model is missing: the GGUF file to use")
    return values.model


def _model_or_demo(values: flags.FlagValues) -> str:
    """The file that the flag names, or the embedded one; an empty name is a mistake, perhaps of an unset variable."""
    if values.model is not None:
        return _model_path(values)
    say(f"no --model: using the embedded demo model, {demo.MODEL.stat().st_size / 1e6:.1f} MB")
    return str(demo.MODEL)


def _prepare(
    values: flags.FlagValues, context: int | None = None, target: "targets.Target | None" = None
) -> "Prepared":
    """File, config and context that the flags name, checked; context: instead of the flag's."""

    path = _model_or_demo(values)
    config = read_config(values.config) if values.config is not None else None
    if target is not None:
        config = target.config(config)
        target.check_compiler()
    return prepare(path, config, values.context if context is None else context)


def _join(values: flags.FlagValues, prepared: "Prepared") -> None:
    """Joins the processes that the flags name, if any; the product of all but the first goes nowhere."""
    given = [name for name in PROCESSES if values[name].value is not None]
    if not given:
        return
    if missing := [name for name in PROCESSES if name not in given]:
        raise ConfigError(f"--{given[0]} goes with --{missing[0]}, which is missing")
    if values.temperature and values.seed is None:
        raise ConfigError("--seed is missing: several processes must draw alike")
    from packlight.compile.processes import join

    reserve_stdout(keep=values.process_id == 0)
    join(values.coordinator, values.num_processes, values.process_id, prepared.config)


def _limit(prepared: "Prepared", target: "targets.Target | None") -> "Limit | None":
    """The memory that the model may take: of the target's chip, else of the device that is here."""
    if target is None or target.chip is None or prepared.config.memory_limit:
        return prepared.memory_limit
    from packlight.compile.memory import Limit

    return Limit(int(target.chip.memory), f"{target.chip.device_kind} by its datasheet")


def _say_memory(prepared: "Prepared", limit: "Limit | None") -> None:
    """The memory plan on stderr, before anything is loaded. Raises MemoryLimitError when it does not fit."""
    if limit is not None:
        limit.check(prepared.memory, os.path.basename(prepared.file.path))
    devices = prepared.split.data * prepared.split.tensor
    where = f" on each of {devices} devices" if devices > 1 else ""
    say(f"memory{where}: {prepared.memory}" + ("" if limit is None else f" of {limit}"))


def _memory_report(memory: "MemoryPlan", limit: "Limit | None") -> dict[str, Any]:
    return {
        "weights_bytes": memory.weights,
        "kv_bytes": memory.cache,
        "scratch_bytes": memory.scratch,
        "limit_bytes": limit and limit.bytes,
        "limit": limit and limit.source,
    }


def _load(prepared: "Prepared") -> "packlight.LLM":
    """The prepared model, with progress bars and the plan in brief on stderr."""
    import packlight

    _say_memory(prepared, prepared.memory_limit)
    left = sum(info.nbytes for info in prepared.file.tensors.values())
    with Bar() as bar:
        bar.start("load", left, unit="B", unit_scale=True)

        def on_read(nbytes: int, _total: int) -> None:
            nonlocal left
            left -= nbytes
            bar.advance(nbytes)
            if not left:
                bar.start("compile", len(prepared.plan.steps), unit="step")

        llm = packlight.LLM(prepared, on_read, lambda _built, _total: bar.advance(1))
    mix = ", ".join(f"{name} x{entry['tensors']}" for name, entry in packlight.format_totals(llm.file).items())
    layouts = llm.layouts()
    kinds = Counter((path, layouts.get(name, "ggml")) for name, path in llm.kernel_paths().items())
    paths = ", ".join(
        f"{path} x{n}" + (f" ({layout})" if layout != "ggml" else "") for (path, layout), n in kinds.most_common()
    )
    say(f"{os.path.basename(llm.file.path)}: {llm.model.architecture.name}, {llm.weights_bytes / 1e6:,.1f} MB: {mix}")
    launch = f", {n} tokens per launch" if (n := llm.plan.tokens_per_launch) > 1 else ""
    say(
        f"{llm.device.device_kind}: kernels {paths}, attention {llm.attention_path}; "
        f"context {llm.plan.context}, slots {llm.plan.slots}{launch}; "
        f"executables: {llm.executables.hits} from the store, {llm.executables.misses} compiled"
    )
    if not llm.placement.single:
        say(f"{llm.placement.split}")
    warn([*prepared.warnings, *llm.executables.warnings])
    return llm


def _generate_report(llm: "packlight.LLM", completion: "packlight.Completion") -> dict[str, Any]:
    from packlight.compile.aot import compile_count

    memory = {"weights_bytes": llm.weights_bytes, "kv_bytes": llm.kv_bytes, "scratch_bytes": llm.memory.scratch}
    counts = {"hits": llm.executables.hits, "misses": llm.executables.misses, "compiled": compile_count()}
    return {
        **dataclasses.asdict(completion),
        "timings": llm.timings | completion.timings,
        "memory": memory | {"peak_rss_bytes": _peak_rss()},
        "compile": counts,
        "mesh": dataclasses.asdict(llm.placement.split),
        "plan": llm.kernel_paths(),
        "layouts": llm.layouts(),
    }


def _peak_rss() -> int:
    """The process's largest resident set so far, in bytes."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
