"""The flags of `bench`: what they are called, what they mean, and the checks that need no model. Imports no jax."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from packlight.common.errors import ConfigError
from packlight.common.text import reason

TWINS = {"f32": "F32", "bf16": "BF16"}  # path -> format of the matrices of an unpacked file
PATHS = ("reference", *TWINS, "xla", "native")
PEERS = ("llama.cpp",)
RECORD_KEYS = ("sha256", "machine", "limits", "results", "ratios")  # by which a record is known

FLAGS: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "prompt_tokens": (flags.DEFINE_integer, 512, "tokens of the prompt test, pp; 0 leaves it out"),
    "gen_tokens": (flags.DEFINE_integer, 128, "tokens of the generation tests, tg; 0 leaves them out"),
    "reps": (flags.DEFINE_integer, 5, "repetitions of each test, after one that is not counted"),
    "batch": (flags.DEFINE_string, "1", "sequences that generate together: a number or several, 1,4,8"),
    "depth": (flags.DEFINE_string, "0", "tokens in the context before tg: a number or several, 0,1024"),
    "compare": (flags.DEFINE_string, None, "llama.cpp: run it in turn with packlight and show ratios"),
    "llama_bench": (flags.DEFINE_string, None, "llama-bench program to compare with"),
    "peer_python": (flags.DEFINE_string, None, "Python that has llama-cpp-python (default: this one)"),
    "paths": (flags.DEFINE_string, "", f"kernel paths to run in turn, some of {','.join(PATHS)}"),
    "results": (flags.DEFINE_string, None, "JSON file to append the record to"),
    "gate": (flags.DEFINE_string, None, "JSON file of an earlier run; exit with 1 if this one is slower"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, checked; fields as in FLAGS.

    paths: what `--paths` names ("f32", "bf16": all matrices unpacked to that before loading). Raises ConfigError.
    """

    prompt_tokens: int = 512
    gen_tokens: int = 128
    reps: int = 5
    batch: tuple[int, ...] = (1,)
    depth: tuple[int, ...] = (0,)
    compare: str | None = None
    llama_bench: str | None = None
    peer_python: str | None = None
    paths: tuple[str, ...] = ()
    results: str | None = None
    gate: str | None = None

    def __post_init__(self):
        for name, value, low in (
            ("prompt_tokens", self.prompt_tokens, 0),
            ("gen_tokens", self.gen_tokens, 0),
            ("reps", self.reps, 1),
            *(("batch", value, 1) for value in self.batch),
            *(("depth", value, 0) for value in self.depth),
        ):
            if not low <= value < 2**20:
                raise ConfigError(f"--{name}={value} is not between {low} and {2**20 - 1}")
        if not self.prompt_tokens and not self.gen_tokens:
            raise ConfigError("--prompt_tokens and --gen_tokens are both 0: there is nothing to measure")
        if self.compare not in (None, *PEERS):
            raise ConfigError(f"--compare={self.compare} is unknown; there is: {', '.join(PEERS)}")
        if self.peer_python is not None and not self.compare:
            raise ConfigError("--peer_python is for --compare=llama.cpp, which is missing")
        for path in self.paths:
            if path not in PATHS:
                raise ConfigError(f"--paths: {path!r} is unknown; there are: {', '.join(PATHS)}")

    @classmethod
    def of(cls, values: flags.FlagValues) -> "Options":
        """From parsed flags."""
        given: dict[str, Any] = {name: values[name].value for name in FLAGS}
        for name in ("batch", "depth"):
            given[name] = _numbers(name, given[name])
        given["paths"] = tuple(dict.fromkeys(path for path in given["paths"].split(",") if path))
        options = cls(**given)
        if options.results is not None:
            read_records(options.results, "results", missing_ok=True)
        if options.gate is not None:
            read_records(options.gate, "gate")
        return options


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise ConfigError(f"--{flag}={text} is not a number or several with commas between") from None


def read_records(
    path: str, flag: str, missing_ok: bool = False, keys: Sequence[str] = RECORD_KEYS
) -> list[dict[str, Any]]:
    """The records in a JSON file, a list of them or one as `--json` prints it: objects with at least `keys`.

    Raises ConfigError naming the flag.
    """
    try:
        found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing_ok and os.path.isdir(os.path.dirname(path) or "."):
            return []
        raise ConfigError(f"--{flag}={path}: no such file or folder") from None
    except OSError as error:
        raise ConfigError(f"--{flag}={path}: {reason(error)}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"--{flag}={path}: not JSON") from None
    records = found if isinstance(found, list) else [found]
    if not all(isinstance(record, dict) and record.keys() >= set(keys) for record in records):
        raise ConfigError(f"--{flag}={path}: not a record of packlight bench")
    return records
