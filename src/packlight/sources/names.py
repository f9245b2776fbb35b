"""`hf:OWNER/REPO[@REVISION][:WHAT]`: what such a name says, and which file of a repository it means.

It knows names of files; it neither opens them nor asks anyone for them.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from packlight.common.errors import ConfigError, MissingFileError
from packlight.common.text import near, shown
from packlight.model.gguf.reader import SPLIT_NAME

# Source of both: llama.cpp common/download.cpp, `find_best_model` and `gguf_filename_is_model`.
DEFAULTS = ("Q4_K_M", "Q8_0")  # what a name without a quantization means, the first that is there
NO_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")  # in names of what goes with a model
MOST_NAMED = 12  # files or quantizations in an error

_NAME = re.compile(r"hf:(?://)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:]+))?(?::(?P<wanted>.+))?", re.ASCII)
_QUANTIZATION = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d(?:_[A-Z\d]+)*|TQ\d_\d|MXFP4(?:_[A-Z\d]+)*|NVFP4|BF16|FP?16|FP?32))(?=[-./]|$)",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class HubName:
    """A model on Hugging Face. `wanted`: a quantization, a file, or None; `text`: the name as it was given."""

    text: str
    repo: str
    revision: str
    wanted: str | None

    @classmethod
    def parse(cls, text: str) -> "HubName":
        """Raises ConfigError for what is no such name."""
        found = _NAME.fullmatch(text)
        if found is None or not leads_down(found["revision"] or "main"):
            raise ConfigError(
                f"{shown(text)}: a model on Hugging Face is named hf:OWNER/REPO, hf:OWNER/REPO:Q4_K_M or"
                " hf:OWNER/REPO:FILE.gguf, with @REVISION behind REPO where one is meant"
            )
        return cls(shown(text, 200), found["repo"], found["revision"] or "main", found["wanted"])


class Choice(NamedTuple):
    """The file that a name means, all parts of it in order, and what there is to say of the choice, or ""."""

    files: tuple[str, ...]
    note: str


def choose(name: HubName, files: Iterable[str], whose: str = "the repository") -> Choice:
    """The model among `files` that `name` means.

    A file is taken by its name, else by its quantization in any case, the first that fits. Without either it is the
    first of DEFAULTS that is there, else the first model. whose: in errors, what has the files.
    Raises MissingFileError where nothing fits, with what is there, the nearest first.
    """
    files = sorted(files)
    models = [file for file in files if is_model(file) and _is_first(file)]
    if not models:
        others = f"; what it has: {_some(files)}" if files else ""
        raise MissingFileError(f"{name.text}: {whose} has no GGUF model{others}")
    if name.wanted is None:
        file, note = _default(models)
    elif name.wanted.lower().endswith(".gguf"):
        file, note = _named(name, name.wanted, [file for file in files if file.lower().endswith(".gguf")], whose), ""
    else:
        file, note = _quantized(name, name.wanted, models, whose)
    parts = parts_of(file)
    if missing := [part for part in parts if part not in files]:
        raise MissingFileError(f"{name.text}: {whose} has not all parts of {shown(file)}: {_some(missing)} missing")
    return Choice(parts, note)


def leads_down(path: str) -> bool:
    """Whether a path of the hub's, or a revision, stays below the folder that it is joined to."""
    return {"", ".", ".."}.isdisjoint(path.split("/"))


def is_model(file: str) -> bool:
    """Whether a file is a GGUF model by its name, not a projector or the like that goes with one."""
    base = file.rpartition("/")[2].lower()
    return base.endswith(".gguf") and not any(word in base for word in NO_MODELS)


def parts_of(file: str) -> tuple[str, ...]:
    """A file that is whole alone, or all parts of the split one that it is a part of."""
    split = SPLIT_NAME.fullmatch(file)
    if split is None or not int(split[3]):
        return (file,)
    return tuple(f"{split[1]}-{i:05d}-of-{split[3]}.gguf" for i in range(1, int(split[3]) + 1))


def quantization(file: str) -> str | None:
    """What a file's name says of its quantization, in capitals; the last word that can be one."""
    words = _QUANTIZATION.findall(_stem(file))
    return words[-1].upper() if words else None


def _is_first(file: str) -> bool:
    return parts_of(file)[0] == file


def _stem(file: str) -> str:
    split = SPLIT_NAME.fullmatch(file)
    return split[1] if split else re.sub(r"\.gguf$", "", file, flags=re.IGNORECASE)


def _default(models: Sequence[str]) -> tuple[str, str]:
    for wanted in DEFAULTS:
        for file in models:
            if quantization(file) == wanted:
                return file, "" if wanted == DEFAULTS[0] else f"as there is no {DEFAULTS[0]}"
    why = f"the first of {len(models)} models" if len(models) > 1 else "the only model"
    return models[0], f"{why}, as there is no {' or '.join(DEFAULTS)}"


def _named(name: HubName, wanted: str, files: Sequence[str], whose: str) -> str:
    """The file of this path, or of this name in a folder. Raises MissingFileError."""
    for each in (lambda file: file, str.lower, lambda file: file.rpartition("/")[2].lower()):
        if found := [file for file in files if each(file) == each(wanted)]:
            if is_model(found[0]):
                return found[0]
            raise MissingFileError(f"{name.text}: {shown(found[0])} goes with a model and is none")
    models = [file for file in files if is_model(file) and _is_first(file)]
    hint = near(wanted, models) or f"; it has: {_some(models)}"
    raise MissingFileError(f"{name.text}: {whose} has no such file{hint}")


def _quantized(name: HubName, wanted: str, models: Sequence[str], whose: str) -> tuple[str, str]:
    """The first file in this quantization, and a note where there are more. Raises MissingFileError."""
    wanted = wanted.upper()
    ending = re.compile(rf"(?:^|[-._/]){re.escape(wanted)}", re.IGNORECASE)  # "UD-Q4_K_XL" for "Q4_K_XL"
    exact = [file for file in models if quantization(file) == wanted]
    found = exact or [file for file in models if any(m.end() == len(_stem(file)) for m in ending.finditer(_stem(file)))]
    if not found:
        there = sorted({quantization(file) or file for file in models}, key=lambda q: _far(wanted, q))
        raise MissingFileError(f"{name.text}: {whose} has no {shown(wanted)}; it has: {_some(there)}")
    note = f"the first of {len(found)} in {wanted}; :FILE.gguf names another" if len(found) > 1 else ""
    return found[0], note


def _far(wanted: str, there: str) -> tuple[int, bool, float, str]:
    """How far a quantization is from the one that is wanted: by bits, by kind (Q, IQ, UD-Q, BF), then by letters."""
    kinds, bits = zip(*(re.findall(r"(\D*)(\d*)", q)[0] for q in (wanted, there)), strict=True)
    apart = abs(int(bits[0]) - int(bits[1])) if all(bits) else 99
    return apart, kinds[0] != kinds[1], -difflib.SequenceMatcher(None, wanted, there).ratio(), there


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(shown(name) for name in names[:MOST_NAMED]) + more
