"""`packlight pull`: a model from Hugging Face, without running it."""

import dataclasses

from absl import flags

from packlight.cli.flags import Command
from packlight.cli.terminal import DownloadBar, say, write, write_json
from packlight.common.errors import ConfigError


def run(values: flags.FlagValues) -> None:
    """Downloads a model, or finds it in the cache; prints the path of its file."""
    from packlight.sources.hub import fetch
    from packlight.sources.names import HubName

    if not values.model:
        raise ConfigError("--model is missing: what to download, hf:OWNER/REPO or hf:OWNER/REPO:Q4_K_M")
    name = values.model if values.model.startswith("hf:") else f"hf:{values.model}"
    fetched = fetch(HubName.parse(name), say, DownloadBar)
    if values.json:
        write_json(dataclasses.asdict(fetched))
    else:
        write(f"{fetched.paths[0]}\n")


COMMAND = Command(
    "pull",
    "download a model from Hugging Face",
    "packlight pull hf:Qwen/Qwen3-0.6B-GGUF:Q8_0",
    ("model", "json"),
    run,
)
