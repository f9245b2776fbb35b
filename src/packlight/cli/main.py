"""packlight at the terminal: `python run.py COMMAND [--flags]`, also installed as `packlight`.

stdout carries the command's product and nothing else; progress, plan and timings go to stderr. A user's mistake is
one line `error: ...` and exit code 2. It knows flags and terminals; everything else is `packlight`'s.
"""

import functools
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from absl import flags

from packlight.cli import help as pages
from packlight.cli import messages
from packlight.cli.commands import COMMANDS
from packlight.cli.flags import Command
from packlight.cli.spelling import message, spelled
from packlight.cli.terminal import (
    StreamError,
    close_stderr,
    detail,
    end_by_signals,
    open_streams,
    say,
    show_task,
    write,
)
from packlight.common.errors import ConfigError, PacklightError
from packlight.common.progress import shown_by
from packlight.common.text import near, reason, shown_path
from packlight.sources import PREFIXES

EXIT_MISTAKE = 2
FLAG_TYPES = {"int": "an integer", "float": "a number", "bool": "true or false"}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command line; exits with 2 after a line `error: ...` for a user's mistake."""
    with messages.of_a_command(), shown_by(show_task):
        open_streams()
        end_by_signals()
        try:
            _dispatch(list(sys.argv[1:] if argv is None else argv))
            write("")  # what libraries printed there
        except (PacklightError, StreamError) as error:
            _fail(message(error))
        except OSError as error:  # of a file that no one else has named: a temporary one, say, on a full disk
            _fail(f"{shown_path(str(error.filename))}: {reason(error)}" if error.filename else reason(error))
        except Exception:  # a fault of ours: Python shows it on stderr
            messages.current.note(traceback.format_exc())
            raise
        finally:
            messages.current.release()
            close_stderr()


def _fail(line: str) -> NoReturn:
    say(f"error: {line}")
    sys.exit(EXIT_MISTAKE)


def _dispatch(arguments: list[str]) -> None:
    match arguments:
        case ["--version" | "version"]:
            write(f"packlight {importlib.metadata.version('packlight')}\n")
            return
        case ["help", "--man"]:
            write(pages.man_page())
            return
        case ["help", "--helpfull"]:
            write(pages.whole())
            return
        case ["help", name, *_] if name not in ("-h", "--help"):
            write(pages.explained(name))
            return
        case ["help", *_]:
            write(pages.overview())
            return
        case [name, *rest] if not name.startswith("-") and not _is_model(name):
            command, arguments = _named(name), rest
            brief = functools.partial(pages.of_command, command)
            full = functools.partial(pages.of_command, command, full=True)
        case _:
            command, brief, full = COMMANDS["generate"], pages.overview, pages.whole
    values = _parse(command, arguments)
    if values is None or values.helpfull:
        write(brief() if values is None else full())
        return
    messages.current.settle(values.quiet, values.verbose, values.log_file)
    detail(f"packlight {importlib.metadata.version('packlight')}: {command.name}")
    command.run(values)


def _named(name: str) -> Command:
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}{near(name, COMMANDS)}; there are: {', '.join(COMMANDS)}")
    return COMMANDS[name]


def _is_model(word: str) -> bool:
    """Whether a first word is a model to continue a prompt with, and no command."""
    named = word.lower().endswith(".gguf") or word.startswith(PREFIXES) or "/" in word
    return word not in COMMANDS and (named or os.path.isfile(word))


def _parse(command: Command, arguments: list[str]) -> flags.FlagValues | None:
    """The command's flags with the values that the arguments give, or None where they ask for help.

    Raises ConfigError naming what does not belong.
    """
    values = command.define()
    words, help_wanted = spelled(command.name, arguments, values)
    if help_wanted:
        return None
    try:
        values([command.name, *words])
    except flags.IllegalFlagValueError as error:
        said = str(error).removesuffix(f": {error.__context__}")  # "flag --top_k=x: invalid literal for int() ..."
        kind = values[said.removeprefix("flag --").split("=")[0]].flag_type()
        raise ConfigError(f"{said} is not {FLAG_TYPES.get(kind, kind)}") from None
    except flags.Error as error:
        raise ConfigError(f"{error}; see packlight {command.name} --help") from None
    if command.actions and values.action not in (None, *command.actions):
        hint, known = near(values.action, command.actions), ", ".join(command.actions)
        raise ConfigError(f"packlight {command.name} {values.action!r} is unknown{hint}; there are: {known}")
    return values
