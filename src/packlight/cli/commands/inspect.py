"""`packlight inspect`: what is in a file."""

from absl import flags

from packlight.cli.flags import Command
from packlight.cli.inputs import model_or_demo
from packlight.cli.tables import inspect_text, short, summary_text
from packlight.cli.terminal import write, write_json


def run(values: flags.FlagValues) -> None:
    """Prints what a file is and whether it runs here; with --verbose also hyperparameters, metadata and each tensor."""
    import packlight

    report = packlight.inspect(model_or_demo(values))
    report["metadata"] = {key: short(value) for key, value in report["metadata"].items()}
    if values.json:
        write_json(report)
    else:
        write(summary_text(report) + (f"\n{inspect_text(report)}" if values.verbose else ""))


COMMAND = Command(
    "inspect",
    "show what a file is, and whether it runs here",
    "packlight inspect --model=model.gguf",
    ("model", "json"),
    run,
)
