"""`packlight inspect`: what is in a file."""

from absl import flags

from packlight.cli.flags import Command
from packlight.cli.inputs import model_or_demo
from packlight.cli.tables import inspect_text, short
from packlight.cli.terminal import write, write_json


def run(values: flags.FlagValues) -> None:
    """Prints what is in a file: hyperparameters, metadata, each tensor with its kernel path, totals, problems."""
    import packlight

    report = packlight.inspect(model_or_demo(values))
    report["metadata"] = {key: short(value) for key, value in report["metadata"].items()}
    if values.json:
        write_json(report)
    else:
        write(inspect_text(report))


COMMAND = Command(
    "inspect",
    "show what is in a file, and what of it is unsupported",
    "packlight inspect --model=model.gguf",
    ("model", "json"),
    run,
)
