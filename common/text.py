"""Names of others in our messages: cut, escaped, and the file they come from put first."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator

from packlight.common.errors import PacklightError


def shown(name: str | bytes, limit: int = 80) -> str:
    """`name` for an error message: one printable line, cut at `limit` characters; nothing in it steers a terminal."""
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    if len(text) > limit:
        text = text[:limit] + "..."
    return printable(text)


def printable(text: str, keep: str = "") -> str:
    """`text` with what a terminal would act on escaped, but for the characters in `keep`."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def shown_path(path: str) -> str:
    return shown(path, 400)


def reason(error: Exception) -> str:
    """Why something failed: the system's words, else the error's own (libraries raise OSError without a number), else
    its kind.
    """
    words = getattr(error, "strerror", None) or " ".join(map(str, error.args)) or type(error).__name__
    return shown(str(words).partition("\n")[0], 200)


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Errors raised inside start with the file's name: put there once, unless what raised it knew the file."""
    try:
        yield
    except PacklightError as error:
        start = f"{shown_path(path)}: "
        if str(error).startswith(start):
            raise
        raise type(error)(start, *error.parts) from None


def near(name: str, known: Iterable[str], form: str = "{}") -> str:
    """The end of a message about an unknown name: the known one that was perhaps meant, or "" where none is near.

    form: how names are written.
    """
    folded, wanted = {each.casefold(): each for each in known}, name.casefold()
    begun = [each for each in folded if len(name) > 2 and each.startswith(wanted)]
    found = difflib.get_close_matches(wanted, folded, 1) or begun
    return f"; did you mean {form.format(shown(folded[found[0]]))!r}?" if found else ""


def megabytes(count: float) -> str:
    """A number of bytes in words."""
    return f"{count / 1e6:,.1f} MB"
