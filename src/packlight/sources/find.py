"""A model that may be a path or a name: `find` makes it a path."""

import os

from packlight.common.errors import ConfigError
from packlight.common.text import shown, shown_path
from packlight.sources.download import MakeBar, Say, plain_bar, print_line
from packlight.sources.hub import fetch
from packlight.sources.names import HubName
from packlight.sources.places import ollama_path


def find(model: str | os.PathLike, say: Say = print_line, bar: MakeBar = plain_bar) -> str | os.PathLike:
    """The path of a model: of `hf:...` downloaded where it is not in the cache, of `ollama:...` Ollama's file.

    say: gets the line that says which file a name means; by default it is printed on stderr. bar: makes progress bars.
    Raises ConfigError, MissingFileError and DownloadError, all naming the model.
    """
    match os.fspath(model):
        case str(name) if name.startswith("hf:"):
            return fetch(HubName.parse(name), say, bar).paths[0]
        case str(name) if name.startswith("ollama:"):
            path = ollama_path(name)
            say(f"{shown(name)}: {shown_path(path)}")
            return path
        case str(name) if name.startswith(("https://", "http://")):
            raise ConfigError(
                f"{shown(name)}: no model is read from a URL; name it hf:OWNER/REPO or hf:OWNER/REPO:FILE.gguf"
            )
    return model
