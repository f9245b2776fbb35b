"""`packlight bench`: speed, alone or in turn with llama.cpp."""

import sys

from absl import flags

from packlight.bench.options import FLAGS, Options
from packlight.cli.flags import Command
from packlight.cli.inputs import model_path
from packlight.cli.tables import bench_text
from packlight.cli.terminal import follow, say, write, write_json

EXIT_SLOWER = 1


def run(values: flags.FlagValues) -> None:
    """Measures speed, alone or in turn with llama.cpp; prints a table, or the record as one JSON object."""
    from packlight.cli.loading import load

    path, options = model_path(values), Options.of(values)
    from packlight.bench import command, gate

    with command.Bench(path, values.config, options) as bench:
        llms = [load(prepared) for prepared in bench.prepared.values()]
        record = follow(bench.measure(llms), say)
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


COMMAND = Command(
    "bench",
    "measure speed, alone or in turn with llama.cpp",
    "packlight bench --model=model.gguf --compare=llama.cpp",
    ("model", *FLAGS, "config", "json"),
    run,
)
