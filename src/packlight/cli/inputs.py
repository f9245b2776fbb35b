"""What the flags name: texts, files, sampling fields, the path of a model. Imports no numpy."""

import os
import re
import sys
from typing import Any

from absl import flags

from packlight import demo
from packlight.cli.terminal import DownloadBar, from_stdin, say
from packlight.common.errors import ConfigError
from packlight.common.text import reason, shown_path
from packlight.model.sampling.config import PARAMETERS
from packlight.model.sampling.parameters import Biases, Integer, Parameter, Schema, Text, Texts


def sampling_fields(values: flags.FlagValues) -> dict[str, Any]:
    """The sampling parameters that the command has flags for; texts are read and split, numbers not checked."""
    return {
        parameter.name: _given(parameter, values[parameter.name].value)
        for parameter in PARAMETERS
        if parameter.name in values
    }


def _given(parameter: Parameter, value: Any) -> Any:
    """What a flag's value means."""
    match parameter.kind:
        case Texts():
            return [text_of(parameter.name, text) for text in value]
        case Biases():
            return dict(_bias(parameter.name, text) for text in value)
        case Text(from_file) | Schema(from_file) if value is not None:
            text = text_of(parameter.name, value)
            return file_text(parameter.name, text[1:]) if from_file and text.startswith("@") else text
        case Integer(optional=True) if value == -1:  # llama.cpp's way to say that it is not set
            return None
        case _:
            return value


def _bias(flag: str, text: str) -> tuple[int, float]:
    parts = re.fullmatch(r"(\d+)([+-](?:\d+\.?\d*|\.\d+|inf))", text)
    if parts is None:
        raise ConfigError(f"--{flag}={text} is not TOKEN_ID+BIAS or TOKEN_ID-BIAS")
    return int(parts[1]), float(parts[2])


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
        raise ConfigError(f"--{flag}={path}: {reason(error)}") from None
    except ValueError:
        raise ConfigError(f"--{flag}={path}: not UTF-8 text") from None


def given_text(values: flags.FlagValues) -> str | None:
    """The text of --prompt, of the file that --prompt_file names, or what is piped in; a file's last line end is not
    part of it. None where there is none of them.
    """
    if values.prompt is not None and values.prompt_file is not None:
        raise ConfigError("give either --prompt or --prompt_file")
    if values.prompt is not None:
        return text_of("prompt", values.prompt)
    if values.prompt_file is not None:
        return file_text("prompt_file", values.prompt_file).removesuffix("\n")
    try:
        text = "" if sys.stdin.isatty() else from_stdin(sys.stdin.buffer.read).decode().removesuffix("\n")
    except UnicodeError:
        raise ConfigError("stdin is not UTF-8 text") from None
    return text or None


def model_path(values: flags.FlagValues) -> str:
    """The file that the flag names. A name that is no path, `hf:...`, is looked up once: its path takes its place."""
    from packlight.sources.find import find

    if not values.model:
        raise ConfigError("--model is missing: the GGUF file to use")
    values.model = str(find(values.model, say, DownloadBar))
    if not os.path.exists(values.model) and re.fullmatch(r"[\w.-]+/[\w.-]+(?<!\.gguf)(:.+)?", values.model):
        raise ConfigError(f"{shown_path(values.model)}: no such file; did you mean 'hf:{shown_path(values.model)}'?")
    return values.model


def model_or_demo(values: flags.FlagValues) -> str:
    """The file that the flag names, or the embedded one; an empty name is a mistake, perhaps of an unset variable."""
    if values.model is not None:
        return model_path(values)
    say(f"no --model: using the embedded demo model, {demo.MODEL.stat().st_size / 1e6:.1f} MB")
    return str(demo.MODEL)


def lines_of(flag: str, path: str, without: str) -> list[str]:
    """The lines of the file that a flag names, as `texts_of` finds them. Raises ConfigError where there are none."""
    texts = texts_of(file_text(flag, path), without)
    if not texts:
        raise ConfigError(f"--{flag}={path}: holds no text")
    return texts


def texts_of(text: str, without: str) -> list[str]:
    """The lines of a file that are not blank, without carriage returns at their ends; says what is left out.

    A line ends with a newline and nothing else, as other programs count them: U+2028, a vertical tab and the like are
    text. without: what blank lines do.
    """
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    blank = [number for number, line in enumerate(lines, 1) if not line.strip(" \t")]
    if blank and len(blank) < len(lines):
        some = ", ".join(map(str, blank[:8])) + (", ..." if len(blank) > 8 else "")
        say(f"blank lines {without}: {some}")
    return [line for line in lines if line.strip(" \t")]
