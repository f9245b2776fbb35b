"""What the flags name: texts, files, sampling fields, the path of a model. Imports no numpy."""

import os
import re
from typing import Any

from absl import flags

from packlight import demo
from packlight.cli.flags import SAMPLING
from packlight.cli.terminal import say
from packlight.common.errors import ConfigError


def sampling_fields(values: flags.FlagValues) -> dict[str, Any]:
    """The fields of a sampling config that the flags name; texts are read and split, numbers not checked."""
    sampling: dict[str, Any] = {name: values[name].value for name in SAMPLING}
    for name in ("stop", "dry_sequence_breakers"):
        sampling[name] = [text_of(name, text) for text in sampling[name]]
    for name in ("json_schema", "regex", "grammar"):
        if sampling[name] is not None:
            text = text_of(name, sampling[name])
            sampling[name] = file_text(name, text[1:]) if text.startswith("@") and name != "regex" else text
    biases = {}
    for given in sampling["logit_bias"]:
        parts = re.fullmatch(r"(\d+)([+-](?:\d+\.?\d*|\.\d+|inf))", given)
        if parts is None:
            raise ConfigError(f"--logit_bias={given} is not TOKEN_ID+BIAS or TOKEN_ID-BIAS")
        biases[int(parts[1])] = float(parts[2])
    return sampling | {"logit_bias": biases}


def text_of(flag: str, value: str) -> str:
    """An argument as UTF-8, whatever the locale took its bytes for."""
    try:
        return os.fsencode(value).decode()
    except UnicodeError:
        raise ConfigError(f"--{flag} is not UTF-8 text") from None


def file_text(flag: str, path: str) -> str:
    """The text of a file that a flag names."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"--{flag}={path}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"--{flag}={path}: not UTF-8 text") from None


def model_path(values: flags.FlagValues) -> str:
    if not values.model:
        raise ConfigError("--model is missing: the GGUF file to use")
    return values.model


def model_or_demo(values: flags.FlagValues) -> str:
    """The file that the flag names, or the embedded one; an empty name is a mistake, perhaps of an unset variable."""
    if values.model is not None:
        return model_path(values)
    say(f"no --model: using the embedded demo model, {demo.MODEL.stat().st_size / 1e6:.1f} MB")
    return str(demo.MODEL)
