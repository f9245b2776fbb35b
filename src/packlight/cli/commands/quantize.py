"""`packlight quantize`: a smaller file from one of floats."""

import os

from absl import flags

from packlight.cli.flags import Command
from packlight.cli.inputs import model_path
from packlight.cli.tables import quantize_text
from packlight.cli.terminal import Bar, write, write_json
from packlight.common.errors import ConfigError


def run(values: flags.FlagValues) -> None:
    """Writes a smaller file from one of floats."""
    from packlight.quantization import quantize_file

    named = values.model
    path = model_path(values)
    if values.type is None:
        raise ConfigError("--type is missing: what to quantize to, such as Q4_K_M")
    to = values.type.upper()
    beside = path if path == named else os.path.basename(path)  # not into the cache that a name leads to
    out = values.out or f"{os.path.splitext(beside)[0]}-{to}.gguf"
    with Bar() as bar:
        bar.start("quantize", os.path.getsize(path) if os.path.isfile(path) else 0, unit="B", unit_scale=True)
        report = quantize_file(path, to, out, bar.advance)
    if values.json:
        write_json(report)
    else:
        write(quantize_text(report))


COMMAND = Command(
    "quantize",
    "write a smaller file from one of F32, F16 or BF16 weights",
    "packlight quantize --model=model-f16.gguf --type=Q4_K_M",
    ("model", "type", "out", "json"),
    run,
)
