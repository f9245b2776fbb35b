"""What `packlight help` shows, and the man page: made of the tables of commands and flags. Imports no numpy."""

import importlib.metadata
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from packlight.cli.commands import COMMANDS
from packlight.cli.flags import (
    COMMON,
    DRAFTING,
    FLAGS,
    MESSAGES,
    PLAN,
    PROCESSES,
    SAMPLING,
    SERVING,
    STRUCTURED,
    Command,
)
from packlight.cli.spelling import ALIASES, MOOT, VALUES
from packlight.common.errors import ConfigError
from packlight.common.text import near

WIDTH = 80
# What most command lines use; the overview explains these, and of the flags that topics explain a command's help shows
# no others.
USUAL = ("model", "prompt", "max_tokens", "temperature", "seed", "context", "system", "json")
USUAL += ("quiet", "verbose")


class Topic(NamedTuple):
    """Flags that belong together, of several commands."""

    title: str
    flags: tuple[str, ...]


TOPICS: Mapping[str, Topic] = {
    "sampling": Topic(
        "how tokens are drawn, in llama.cpp's order with its defaults",
        tuple(name for name in SAMPLING if name not in STRUCTURED),
    ),
    "structured": Topic("texts of a form, with the extra `grammar`", STRUCTURED),
    "running": Topic("what a model runs on, and how much it may take", (*PLAN, *DRAFTING, *PROCESSES)),
    "serving": Topic("whom a server answers, how long, and what of a request", SERVING[4:]),
    "messages": Topic("what is said on stderr; NO_COLOR=1 turns colours off", MESSAGES),
    "spellings": Topic("other names of flags, mostly llama.cpp's; hyphens are underscores", ()),
}


def overview() -> str:
    """All commands in a line each, and the usual flags; it fits a screen."""
    name_width = max(map(len, COMMANDS)) + 2
    return "".join(
        [
            "packlight COMMAND [FILE.gguf] [--flag=value ...]: runs GGUF language models\n\n",
            *(f"  {command.name:<{name_width}}{command.summary}\n" for command in COMMANDS.values()),
            "\n",
            *flag_lines(USUAL, brief=True),
            f"COMMAND --help; help {', '.join(TOPICS)}\n",
        ]
    )


def whole() -> str:
    """Every command with all its flags."""
    return "\n".join(of_command(command, full=True) for command in COMMANDS.values())


def of_command(command: Command, full: bool = False) -> str:
    """A command with its own flags and the usual ones, or with all."""
    elsewhere = {name for topic in TOPICS.values() for name in topic.flags} | {*COMMON, "action"}
    shown = tuple(name for name in command.own if name != "action")
    shown = (*shown, *COMMON) if full else tuple(n for n in (*shown, *MESSAGES) if n in USUAL or n not in elsewhere)
    lines = [f"{command.name}: {command.summary}\n", f"    {command.example}\n", "\n", *flag_lines(shown)]
    left = [name for name in command.takes if name not in (*shown, "action", "helpfull")]
    if left:
        about = [name for name, topic in TOPICS.items() if {*topic.flags} & {*left}]
        lines.append(f"\nmore: --helpfull; packlight help {' | '.join(about)}\n")
    return "".join(lines)


def explained(name: str) -> str:
    """What `packlight help NAME` shows. Raises ConfigError for what is neither a command nor a topic."""
    if name in COMMANDS:
        return of_command(COMMANDS[name])
    if name not in TOPICS:
        known = [*COMMANDS, *TOPICS]
        raise ConfigError(f"nothing is called {name!r}{near(name, known)}; there are: {', '.join(known)}")
    title, names = TOPICS[name]
    lines = flag_lines(names) if names else _spellings()
    return "".join([f"{name}: {title}\n\n", *lines])


def flag_lines(names: Sequence[str], brief: bool = False) -> list[str]:
    """Flags with their meanings, in aligned columns. brief: without what stands in brackets, so that each is a line."""
    width = max(map(len, names)) + 2
    lines = []
    for name in names:
        meaning = FLAGS[name][2].partition(" (")[0] if brief else meaning_of(name)
        head = f"  {_short(name):<4}--{name:<{width}}"
        lines.append(textwrap.fill(meaning, WIDTH, initial_indent=head, subsequent_indent=" " * len(head)) + "\n")
    return lines


def meaning_of(name: str) -> str:
    """What a flag means, with its default."""
    _, default, text = FLAGS[name]
    if isinstance(default, list):
        default = " ".join(map(repr, default))
    return text + (f" (default: {default})" if default else "")


def _short(name: str) -> str:
    """The letter that a flag may be written with, if there is one."""
    return next((f"-{alias}, " for alias, names in ALIASES.items() if len(alias) == 1 and name in names), "")


def _spellings() -> Iterable[str]:
    others: dict[str, list[str]] = {}
    for alias, names in ALIASES.items():
        others.setdefault(names[0], []).append(f"{'-' if len(alias) < 4 else '--'}{alias.replace('_', '-')}")
    for name, aliases in others.items():
        yield f"  --{name:<16}{' '.join(aliases)}\n"
    for alias, (name, value) in VALUES.items():
        yield f"  --{f'{name}={value}':<16}--{alias.replace('_', '-')}\n"
    yield "\nThese have nothing to set here:\n\n"
    for why in dict.fromkeys(MOOT.values()):
        named = " ".join(f"--{name.replace('_', '-')}" for name, text in MOOT.items() if text == why)
        yield textwrap.fill(f"{named}: {why}", WIDTH, initial_indent="  ", subsequent_indent="      ") + "\n"


def man_page() -> str:
    """The manual in roff, for `man -l` and for man1 folders."""
    version = importlib.metadata.version("packlight")
    parts = [
        f'.TH PACKLIGHT 1 "" "packlight {version}"\n',
        ".SH NAME\npacklight \\- run GGUF language models with JAX\n",
        ".SH SYNOPSIS\n.B packlight\n.I COMMAND\n.RI [ FILE.gguf ]\n.RI [ \\-\\-flag=value\\ ... ]\n",
        ".SH DESCRIPTION\nThe product goes to stdout, everything else to stderr. ",
        "A mistake is one line and exit status 2.\n.SH COMMANDS\n",
    ]
    for command in COMMANDS.values():
        actions = f" {'|'.join(command.actions)}" if command.actions else ""
        parts.append(
            f".TP\n.B {_roff(command.name + actions)}\n{_roff(command.summary)}\n.br\n{_roff(command.example)}\n"
        )
        names = ", ".join(f"--{name}" for name in command.own if name != "action" and name not in SAMPLING)
        sampling = ", and those of sampling" if "temperature" in command.own else ""
        parts.append(f".br\nFlags: {_roff(names + sampling)}.\n" if names else "")
    parts.append(".SH FLAGS\n")
    for name in dict.fromkeys(name for command in COMMANDS.values() for name in command.takes if name != "action"):
        parts.append(f".TP\n.B {_roff(_short(name) + '--' + name)}\n{_roff(meaning_of(name))}\n")
    parts.append(
        ".SH FILES\n.TP\n.I ~/.cache/packlight\nExecutables, weights, native kernels; see \\fBpacklight cache\\fP.\n"
        ".SH ENVIRONMENT\n.TP\n.B XDG_CACHE_HOME\nThe folder for packlight/, instead of ~/.cache.\n"
        ".TP\n.B CXX\nThe C++ compiler that builds the native kernels.\n.TP\n.B NO_COLOR\nShows no colours.\n"
    )
    return "".join(parts)


def _roff(text: str) -> str:
    """Plain text that troff takes for nothing else."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped
