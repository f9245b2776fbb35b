"""Where Hugging Face's library, Ollama and LM Studio keep models on this machine, and the GGUF files that are there.

It reads folders and manifests, no models. Nothing is written.
"""

import glob
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from packlight.common.errors import ConfigError, MissingFileError
from packlight.common.text import near, shown
from packlight.sources.names import HubName, is_model, parts_of

COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_OLLAMA_MODEL = "application/vnd.ollama.image.model"  # the layer of a manifest that is the GGUF file
_OLLAMA_ADAPTER = "application/vnd.ollama.image.adapter"  # one that changes the model's weights
_OLLAMA_HOST, _OLLAMA_OWNER, _OLLAMA_TAG = "registry.ollama.ai", "library", "latest"  # what a name leaves out
_SERVICE = pathlib.Path("/usr/share/ollama/.ollama/models")  # of Ollama as a service of Linux
_WORD = r"[\w.-]*\w[\w.-]*"  # never "..", which leads up
_OLLAMA_NAME = re.compile(rf"{_WORD}(:\d+)?/{_WORD}/{_WORD}/{_WORD}", re.ASCII)  # the host may have a port


class Here(NamedTuple):
    """A model on this machine. `name`: what `--model` takes; `place`: whose folder it is in."""

    name: str
    path: str
    place: str


def hub_cache() -> pathlib.Path:
    """The folder of huggingface_hub's cache, by that library's rules, whether it is installed or not."""
    home = _folder("HF_HOME") or (_folder("XDG_CACHE_HOME") or _at_home(".cache")) / "huggingface"
    return _folder("HF_HUB_CACHE") or _folder("HUGGINGFACE_HUB_CACHE") or home / "hub"


def repo_folder(repo: str) -> pathlib.Path:
    """A repository's folder in the cache: blobs/DIGEST, snapshots/COMMIT/FILE and refs/REVISION, a file of a commit.

    Source: huggingface_hub's guide "Understand caching".
    """
    return hub_cache() / f"models--{repo.replace('/', '--')}"


def cached_commit(name: HubName) -> str | None:
    """The commit that the revision was, or is, when it was last asked for; None if it never was."""
    if COMMIT.fullmatch(name.revision):
        return name.revision
    commit = _text(repo_folder(name.repo) / "refs" / name.revision)
    return commit if COMMIT.fullmatch(commit) else None


def cached_files(repo: str, commit: str) -> list[str]:
    """The GGUF files of a commit that the cache has, as the repository names them."""
    folder = repo_folder(repo) / "snapshots" / commit
    return [file for file in _gguf_files(folder) if os.path.exists(folder / file)]  # a link's file may be gone


def in_hub_cache() -> Iterator[Here]:
    """Every model in huggingface_hub's cache: of each repository the main revision first, then others by name."""
    for kept in sorted(glob.glob("models--*--*", root_dir=hub_cache())):
        folder, repo = hub_cache() / kept, kept.removeprefix("models--").replace("--", "/")
        notes = [*_files(folder / "refs"), folder / "refs/main"]  # of two for one commit the last counts
        refs = {_text(path): path.relative_to(folder / "refs").as_posix() for path in notes}
        commits = sorted(glob.glob("*", root_dir=folder / "snapshots"))
        for commit in sorted(commits, key=lambda commit: (refs.get(commit) != "main", commit not in refs)):
            revision = refs.get(commit, commit)
            for file in cached_files(repo, commit):
                path = folder / "snapshots" / commit / file
                if _starts(path):
                    at = "" if revision == "main" else f"@{revision}"
                    yield Here(f"hf:{repo}{at}:{file}", str(path), "Hugging Face")


def ollama_folders() -> list[pathlib.Path]:
    """Where Ollama keeps models: what its variable says, else the user's folder and that of the service on Linux."""
    if named := _folder("OLLAMA_MODELS"):
        return [named]
    return [_at_home(".ollama/models"), _SERVICE]


def in_ollama() -> Iterator[Here]:
    """Every model that Ollama has, under Ollama's name for it, but those with an adapter."""
    for folder in ollama_folders():
        manifests = folder / "manifests"
        for manifest in _files(manifests):
            words, layers = manifest.relative_to(manifests).parts, _ollama_layers(manifest)
            if len(words) == 4 and _OLLAMA_ADAPTER not in layers and (blob := _ollama_blob(folder, layers)):
                yield Here(f"ollama:{_ollama_name(*words)}", str(blob), "Ollama")


def ollama_path(text: str) -> str:
    """The file of `ollama:NAME[:TAG]`. Raises MissingFileError, with a name that is near, and ConfigError for a model
    with an adapter.
    """
    *words, last = text.removeprefix("ollama:").split("/")
    name, _, tag = last.partition(":")
    words = [_OLLAMA_HOST, _OLLAMA_OWNER][: max(2 - len(words), 0)] + words + [name, tag or _OLLAMA_TAG]
    possible = ollama_folders() if _OLLAMA_NAME.fullmatch("/".join(words)) else ()
    for folder in possible:
        layers = _ollama_layers(folder.joinpath("manifests", *words))
        if blob := _ollama_blob(folder, layers):
            if _OLLAMA_ADAPTER in layers:
                raise ConfigError(f"{shown(text)}: it has an adapter (LoRA), which packlight does not apply")
            return str(blob)
    there = [here.name for here in in_ollama()]
    hint = near(text, there) or (f"; it has: {', '.join(map(shown, there[:8]))}" if there else "; it has none")
    raise MissingFileError(f"{shown(text)}: Ollama has no such model on this machine{hint}")


def lm_studio_folder() -> pathlib.Path:
    """Where LM Studio keeps models. Source: lmstudio.js `findLMStudioHome`, and the program's settings.json."""
    older, pointed = _at_home(".cache/lm-studio"), _text(_at_home(".lmstudio-home-pointer"))
    home = pathlib.Path(pointed) if pointed else older if os.path.isdir(older) else _at_home(".lmstudio")
    chosen = _object(home / "settings.json").get("downloadsFolder")
    return pathlib.Path(chosen) if isinstance(chosen, str) and chosen else home / "models"


def in_folder(folder: pathlib.Path, place: str, on_error: Callable[[OSError], None]) -> Iterator[Here]:
    """Every model in a folder and those below, by its path; on_error: told of a folder that cannot be read."""
    for file in _gguf_files(folder, on_error):
        path = folder / file
        if _starts(path):
            yield Here(str(path), str(path), place)


def _starts(path: pathlib.Path) -> bool:
    """Whether a file is a whole model, the first part of one, or a part whose first one is missing."""
    first = parts_of(path.name)[0]
    return is_model(path.name) and (first == path.name or not os.path.exists(path.with_name(first)))


def _ollama_layers(manifest: pathlib.Path) -> dict[str, str]:
    """Media type -> digest of a manifest's layers, as it states them; of several of a type the first."""
    layers, found = _object(manifest).get("layers"), {}
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, dict):
            found.setdefault(str(layer.get("mediaType")), str(layer.get("digest")))
    return found


def _ollama_blob(folder: pathlib.Path, layers: dict[str, str]) -> pathlib.Path | None:
    """The GGUF file among a manifest's layers; None where there is none."""
    digest = layers.get(_OLLAMA_MODEL, "")
    return folder / "blobs" / digest.replace(":", "-") if _DIGEST.fullmatch(digest) else None


def _ollama_name(host: str, owner: str, name: str, tag: str) -> str:
    """As `ollama list` writes it."""
    if host != _OLLAMA_HOST:
        return f"{host}/{owner}/{name}:{tag}"
    return f"{name}:{tag}" if owner == _OLLAMA_OWNER else f"{owner}/{name}:{tag}"


def _gguf_files(folder: pathlib.Path, on_error: Callable[[OSError], None] = lambda error: None) -> list[str]:
    """The GGUF files of a folder and those below, relative to it, in order."""
    found = [path for path in _files(folder, on_error) if path.suffix.lower() == ".gguf"]
    return [path.relative_to(folder).as_posix() for path in found]


def _files(folder: pathlib.Path, on_error: Callable[[OSError], None] = lambda error: None) -> list[pathlib.Path]:
    """The files of a folder and those below, in order; of links to folders none."""
    return sorted(pathlib.Path(root, file) for root, _, files in os.walk(folder, onerror=on_error) for file in files)


def _folder(variable: str) -> pathlib.Path | None:
    """The folder that an environment variable names, if it does."""
    value = os.environ.get(variable)
    return pathlib.Path(os.path.expanduser(os.path.expandvars(value))) if value else None


def _at_home(path: str) -> pathlib.Path:
    return pathlib.Path(os.path.expanduser("~"), path)


def _text(path: pathlib.Path) -> str:
    """The words of a small file, or "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _object(path: pathlib.Path) -> dict[str, object]:
    """A JSON object in a file, or an empty one."""
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
