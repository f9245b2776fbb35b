"""The models on this machine as plain data: what each is, and whether packlight runs it. Imports no jax."""

import itertools
import os
import pathlib
import re
from typing import Any

from packlight.common.errors import MissingFileError, PacklightError
from packlight.common.text import reason, shown, shown_path
from packlight.inspection import quantization
from packlight.model.gguf.reader import GGUFFile, check_types, open_gguf
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.weights import check
from packlight.model.text.tokenizer import Tokenizer
from packlight.sources import names
from packlight.sources.places import (
    Here,
    hub_cache,
    in_folder,
    in_hub_cache,
    in_ollama,
    lm_studio_folder,
    ollama_folders,
)

FEW_WORDS = 60  # characters of a reason


def places(folder: str | None = None) -> dict[str, pathlib.Path]:
    """Whose folder -> where models are looked for; folder: a further one."""
    own = {"folder": pathlib.Path(folder)} if folder is not None else {}
    return {"Hugging Face": hub_cache(), "Ollama": ollama_folders()[0], "LM Studio": lm_studio_folder(), **own}


def everything(folder: str | None, warnings: list[str]) -> list[Here]:
    """Every model in one of the places, once; gathers warnings of folders that cannot be read."""

    def unread(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            warnings.append(f"{shown_path(str(error.filename))}: {reason(error)}")

    plain = [(at, place) for place, at in places(folder).items() if place in ("LM Studio", "folder")]
    found: dict[str, Here] = {}
    for here in itertools.chain(in_hub_cache(), in_ollama(), *(in_folder(*each, unread) for each in plain)):
        found.setdefault(os.path.realpath(here.path), here)
    return list(found.values())


def describe(model: Here) -> dict[str, Any]:
    """What a model's file says of itself.

    Keys: name (for `--model`), path, place, bytes (of all parts), architecture, quantization (both None where nothing
    says them), runs, and where it does not, why_not: in few words, and error: in full. Else these are None.
    """
    row: dict[str, Any] = {**model._asdict(), "bytes": _bytes(model.path), "architecture": None}
    row |= {"quantization": names.quantization(model.path), "runs": True, "why_not": None, "error": None}
    parts = names.parts_of(model.path)
    try:
        if missing := [number for number, part in enumerate(parts, 1) if not os.path.exists(part)]:
            what = f"part {missing[0]} of {len(parts)} is missing" if len(parts) > 1 else "the file is not there"
            raise MissingFileError(f"{shown_path(model.path)}: {what}")
        file = open_gguf(model.path, weights_only=False)
        row |= {"architecture": _text(file, "general.architecture"), "quantization": quantization(file)}
        check_types(file)
        check(file, ModelConfig.from_gguf(file))
        Tokenizer.from_file(file)
    except PacklightError as error:
        return row | {"runs": False, "why_not": _in_few_words(str(error), model.path), "error": str(error)}
    return row


def _in_few_words(why_not: str, path: str) -> str:
    """The heart of an error about a file: without the file's name and key, and without what would be supported."""
    text = why_not.removeprefix(f"{shown_path(path)}: ")
    text = re.sub(r"^key '[^']*': ", "", text).partition(";")[0]
    return shown(text, FEW_WORDS)


def _bytes(path: str) -> int:
    return sum(os.path.getsize(part) for part in names.parts_of(path) if os.path.exists(part))


def _text(file: GGUFFile, key: str) -> str | None:
    value = file.metadata.get(key)
    return value if isinstance(value, str) else None
