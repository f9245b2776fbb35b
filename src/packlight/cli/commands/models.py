"""`packlight models`: the models that are on this machine."""

import os

from absl import flags

from packlight.cli.flags import Command
from packlight.cli.tables import models_text
from packlight.cli.terminal import Bar, say, warn, write, write_json
from packlight.common.errors import ConfigError
from packlight.common.text import shown_path


def run(values: flags.FlagValues) -> None:
    """Lists what Hugging Face's library, Ollama, LM Studio and a folder have, and whether packlight runs it."""
    from packlight.sources.listing import describe, everything, places

    if values.folder is not None and not os.path.isdir(values.folder):
        raise ConfigError(f"--folder={shown_path(values.folder)}: no such folder")
    warnings: list[str] = []
    models = everything(values.folder, warnings)
    rows = []
    with Bar() as bar:
        bar.start("read", len(models), unit="file")
        for model in models:
            rows.append(describe(model))
            bar.advance(1)
    warn(warnings)
    if values.json:
        write_json({"models": rows})
    elif rows:
        write(models_text(rows))
    else:
        say(f"no models in {', '.join(shown_path(str(place)) for place in places(values.folder).values())}")


COMMAND = Command(
    "models",
    "list the models on this machine, and whether they run",
    "packlight models ~/models",
    ("folder", "json"),
    run,
)
