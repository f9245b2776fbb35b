"""`packlight generate`: the continuation of a prompt."""

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

from absl import flags

from packlight import demo
from packlight.cli.flags import DRAFTING, PLAN, PROCESSES, SAMPLING, Command
from packlight.cli.inputs import given_text, sampling_fields
from packlight.cli.terminal import (
    echo,
    end_by_signals,
    follow,
    reported,
    reserve_stdout,
    say,
    speed,
    streaming,
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
    for name in ("logprobs", "prompt_logprobs"):
        if values[name].value is not None and not values.json:
            raise ConfigError(f"--{name} is for --json, which is missing")
    config = SamplingConfig(**sampling).with_seed()  # bad values are refused before anything is read
    sampling["seed"] = config.seed
    prepared = prepared_from(values)
    prepared.prompts.check_sampling(config)
    with warnings.catch_warnings(record=True, action="always") as said:
        prompt = prepared.prompts.answerable(text, values.parse_special, config.answered)
    warn([str(each.message) for each in said])
    _join(values, prepared)
    counter = CompileCounter()
    llm = load(prepared, counter.start)
    stream, seed = llm.stream(prompt, **sampling), f"; seed {config.seed}" if values.temperature else ""
    if values.json:
        completion = follow(stream, lambda piece: None)
        counter.stop()
        write_json(_generate_report(llm, completion, counter) | {"seed": sampling["seed"]})
        return
    if values.display_prompt:
        echo(f"{demo.QUESTION}\n" if text == demo.PROMPT else text)
    with reported(lambda ended: speed(stream.so_far, ended) + seed):
        completion = follow(stream, write)
    write("\n")
    say(speed(completion) + seed)
    for line in streaming(llm):
        say(line)


def _prompt_text(values: flags.FlagValues) -> str:
    """The text to continue, or the one of the embedded model where that is used."""
    text = given_text(values)
    if text is None and values.model is not None:
        raise ConfigError("--prompt is missing: the text to continue")
    if text is None:
        say(f"no --prompt: asking {demo.QUESTION!r}")
    return demo.PROMPT if text is None else text


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
        **({} if llm.draft is None else {"draft_bytes": llm.memory.draft}),
    }
    return {
        **dataclasses.asdict(completion),
        "timings": llm.timings | completion.timings,
        "memory": memory | {"peak_rss_bytes": peak_rss()},
        "compile": compile_counts(counter, *(each.executables for each in (llm, llm.draft) if each is not None)),
        "mesh": dataclasses.asdict(llm.placement.split),
        "plan": llm.kernel_paths(),
        "layouts": llm.layouts(),
        "native": llm.native and llm.native._asdict(),
    }


COMMAND = Command(
    "generate",
    "continue a prompt; done where no command is named",
    "packlight generate --model=model.gguf --prompt='Once upon a time'",
    (
        *("model", "prompt", "prompt_file", "parse_special", "display_prompt"),
        *SAMPLING,
        *DRAFTING,
        *PLAN,
        *PROCESSES,
        "json",
    ),
    run,
)
