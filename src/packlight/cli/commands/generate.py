"""`packlight generate`: the continuation of a prompt."""

import dataclasses
import sys
import warnings
from typing import TYPE_CHECKING, Any

from absl import flags

from packlight import demo
from packlight.cli.flags import PLAN, PROCESSES, SAMPLING, Command
from packlight.cli.inputs import file_text, sampling_fields, text_of
from packlight.cli.terminal import (
    end_by_signals,
    follow,
    from_stdin,
    reserve_stdout,
    say,
    speed,
    warn,
    write,
    write_json,
)
from packlight.common.errors import ConfigError

if TYPE_CHECKING:
    import packlight
    from packlight.compile.counter import CompileCounter
    from packlight.prepared import Prepared


def run(values: flags.FlagValues) -> None:
    """Writes the continuation of a prompt as it is generated, or one JSON object with everything about it."""
    from packlight.cli.loading import load, prepared_from
    from packlight.compile.counter import CompileCounter
    from packlight.model.sampling.config import SamplingConfig

    text = _prompt_text(values)
    sampling = sampling_fields(values)
    if values.logprobs is not None and not values.json:
        raise ConfigError("--logprobs is for --json, which is missing")
    config = SamplingConfig(**sampling).with_seed()  # bad values are refused before anything is read
    sampling["seed"] = config.seed
    prepared = prepared_from(values)
    prepared.prompts.check_sampling(config)
    with warnings.catch_warnings(record=True, action="always") as said:
        prompt = prepared.prompts.answerable(text, values.parse_special)
    warn([str(each.message) for each in said])
    _join(values, prepared)
    counter = CompileCounter()
    llm = load(prepared, counter.start)
    completion = follow(llm.stream(prompt, **sampling), (lambda piece: None) if values.json else write)
    counter.stop()
    if values.json:
        write_json(_generate_report(llm, completion, counter) | {"seed": sampling["seed"]})
    else:
        write("\n")
        say(speed(completion) + (f"; seed {sampling['seed']}" if values.temperature else ""))


def _prompt_text(values: flags.FlagValues) -> str:
    """The text to continue: a flag's, a file's, or what is piped in; a file's last line end is not part of it."""
    if values.prompt is not None and values.prompt_file is not None:
        raise ConfigError("give either --prompt or --prompt_file")
    if values.prompt is not None:
        return text_of("prompt", values.prompt)
    if values.prompt_file is not None:
        return file_text("prompt_file", values.prompt_file).removesuffix("\n")
    try:
        text = "" if sys.stdin.isatty() else from_stdin(sys.stdin.buffer.read).decode().removesuffix("\n")
    except UnicodeError:
        raise ConfigError("stdin is not UTF-8 text") from None
    if not text and values.model is not None:
        raise ConfigError("--prompt is missing: the text to continue")
    if not text:
        say(f"no --prompt: continuing {demo.PROMPT!r}")
    return text or demo.PROMPT


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
    end_by_signals()  # jax has taken SIGTERM for itself, and would only note it


def _generate_report(
    llm: "packlight.LLM", completion: "packlight.Completion", counter: "CompileCounter"
) -> dict[str, Any]:
    from packlight.bench.machine import peak_rss
    from packlight.cli.loading import compile_counts

    memory = {
        "weights_bytes": llm.weights_bytes,
        "kv_bytes": llm.kv_bytes,
        "scratch_bytes": llm.memory.scratch,
        "process_bytes": llm.memory.process,
    }
    return {
        **dataclasses.asdict(completion),
        "timings": llm.timings | completion.timings,
        "memory": memory | {"peak_rss_bytes": peak_rss()},
        "compile": compile_counts(llm.executables, counter),
        "mesh": dataclasses.asdict(llm.placement.split),
        "plan": llm.kernel_paths(),
        "layouts": llm.layouts(),
        "native": llm.native and llm.native._asdict(),
    }


COMMAND = Command(
    "generate",
    "write the continuation of a prompt (what is done when no command is named)",
    "packlight generate --model=model.gguf --prompt='Once upon a time' --max_tokens=64",
    ("model", "prompt", "prompt_file", "parse_special", *SAMPLING, *PLAN, *PROCESSES, "json"),
    run,
)
