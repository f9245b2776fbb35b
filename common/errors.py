"""The typed errors a user can meet. Every message is one line that names the file, tensor, key or flag.

They live at the bottom of the import order, so that each package can raise them; `packlight` re-exports them.
"""


class PacklightError(Exception):
    """A user's mistake or an unusable input; the runner prints it as `error: ...` and exits with 2."""


class GGUFError(PacklightError):
    """The file is not a sound GGUF file, or not a sound model."""


class MissingFileError(GGUFError, FileNotFoundError):
    """There is no file of that name."""


class UnsupportedError(PacklightError):
    """An architecture, format or pre-tokenizer that packlight does not know; the message lists what it does."""


class ContextLengthError(PacklightError):
    """Prompt and answer do not fit the context; nothing is ever truncated silently."""


class ConfigError(PacklightError):
    """A config key or value, a flag or an argument that cannot be honoured."""


class MemoryLimitError(PacklightError):
    """Weights, cache and scratch do not fit the device's memory; the message has the numbers."""


class NonFiniteLogitsError(PacklightError):
    """A step gave logits that are NaN or infinite; nothing is sampled from them."""
