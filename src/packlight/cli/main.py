"""packlight at the terminal: `python run.py COMMAND [--flags]`, also installed as `packlight`.

stdout carries the command's product and nothing else; progress, plan and timings go to stderr. A user's mistake is
one line `error: ...` and exit code 2. It knows flags and terminals; everything else is `packlight`'s.
"""

import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import flags

from packlight.cli.commands import COMMANDS
from packlight.cli.flags import Command
from packlight.cli.terminal import StreamError, close_stderr, end_by_signals, open_streams, say, write
from packlight.common.errors import ConfigError, PacklightError
from packlight.common.text import reason, shown_path

EXIT_MISTAKE = 2
FLAG_TYPES = {"int": "an integer", "float": "a number", "bool": "true or false"}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command line; exits with 2 after a line `error: ...` for a user's mistake."""
    open_streams()
    end_by_signals()
    try:
        _dispatch(list(sys.argv[1:] if argv is None else argv))
        write("")  # what libraries printed there
    except (PacklightError, StreamError) as error:
        _fail(str(error))
    except OSError as error:  # of a file that no one else has named: a temporary one, say, on a full disk
        _fail(f"{shown_path(str(error.filename))}: {reason(error)}" if error.filename else reason(error))
    finally:
        close_stderr()


def _fail(message: str) -> NoReturn:
    say("error: " + " ".join(message.split()))
    sys.exit(EXIT_MISTAKE)


def _dispatch(arguments: list[str]) -> None:
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments.pop(0) if named else "generate"
    if name == "help":
        arguments, named = ["--help"], False
    elif name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}; there are: {', '.join(COMMANDS)}")
    if {"--help", "-help", "-h"} & set(arguments):
        write(COMMANDS[name].help() if named else _help())
        return
    command = COMMANDS[name]
    command.run(_parse(command, arguments))


def _parse(command: Command, arguments: list[str]) -> flags.FlagValues:
    """The command's flags with the values that the arguments give. Raises ConfigError naming what does not belong."""
    values = command.define()
    values.set_gnu_getopt(True)
    try:
        for argument in arguments:  # two flags that absl takes unasked: the first reads a file, the second hides typos
            if unasked := re.match("--?(flagfile|undefok)(=|$)", argument):
                raise flags.UnrecognizedFlagError(unasked[1])
        stray = values([command.name, *arguments])[1:]
    except flags.IllegalFlagValueError as error:
        said = str(error).removesuffix(f": {error.__context__}")  # "flag --top_k=x: invalid literal for int() ..."
        kind = values[said.removeprefix("flag --").split("=")[0]].flag_type()
        raise ConfigError(f"{said} is not {FLAG_TYPES.get(kind, kind)}") from None
    except flags.Error as error:
        raise ConfigError(f"{error}; see packlight {command.name} --help") from None
    if stray:
        raise ConfigError(f"unexpected argument {stray[0]!r}; flags are written --name=value")
    return values


def _help() -> str:
    """All commands with their flags and an example each."""
    head = (
        "packlight runs GGUF language models with JAX.\n\nusage: packlight COMMAND [--flag=value ...]\n\n"
        "Without --model, generate, inspect, compile, embed and perplexity use the embedded demo model.\n"
    )
    return "\n".join([head, *(command.help() for command in COMMANDS.values())])
