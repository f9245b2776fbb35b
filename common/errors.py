"""The typed errors a user can meet. Every message is one line that names the file, tensor, key or flag.

They live at the bottom of the import order, so that each package can raise them; `packlight` re-exports them.
"""

from collections.abc import Callable
from typing import NamedTuple


class Argument(NamedTuple):
    """A parameter that a message speaks of. Its name is the one in Python; a command line calls it by a flag's."""

    name: str
    value: object = ""

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


class PacklightError(Exception):
    """A user's mistake or an unusable input; the runner prints it as `error: ...` and exits with 2.

    Its arguments are the parts of one message: texts, and the parameters that stand between them.
    """

    def __init__(self, *parts: str | Argument):
        super().__init__(*parts)
        self.parts = parts

    def __str__(self) -> str:
        return self.worded(str)

    def worded(self, spell: Callable[[Argument], str]) -> str:
        """The message, with its parameters as `spell` writes them."""
        return "".join(spell(part) if isinstance(part, Argument) else part for part in self.parts)


class GGUFError(PacklightError):
    """The file is not a sound GGUF file, or not a sound model."""


class MissingFileError(GGUFError, FileNotFoundError):
    """There is no file of that name."""


class DownloadError(PacklightError):
    """A model cannot be brought here: no network, no access, no room on the disk, a checksum that differs."""


class UnsupportedError(PacklightError):
    """An architecture, format or pre-tokenizer that packlight does not know; the message lists what it does."""


class ContextLengthError(PacklightError):
    """Prompt and answer do not fit the context; nothing is ever truncated silently."""


class ConfigError(PacklightError):
    """A config key or value, a flag or an argument that cannot be honoured."""


class ArgumentError(ConfigError, TypeError):
    """A call names an argument that the function does not take; the message has the nearest that it takes."""


class MemoryLimitError(PacklightError):
    """Weights, cache and scratch do not fit the device's memory; the message has the numbers."""


class NonFiniteLogitsError(PacklightError):
    """A step gave logits that are NaN or infinite; nothing is sampled from them."""
