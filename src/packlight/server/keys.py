"""API keys: where they come from, and whether what a client shows is one."""

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping

from packlight.common.errors import ConfigError
from packlight.common.text import reason, shown_path

VARIABLE = "PACKLIGHT_API_KEY"
SOUND = re.compile(r"[\x21-\x7e]+")
BEARER = re.compile(rb"bearer +(\S+) *", re.IGNORECASE)


class Keys:
    """The keys that open the server, as digests; without any, everyone may ask."""

    def __init__(self, keys: Iterable[str] = ()):
        self._digests = tuple(_digest(key.encode()) for key in keys)

    def __len__(self) -> int:
        return len(self._digests)

    def open(self, shown: bytes) -> bool:
        """Whether this is one of the keys. The time it takes tells nothing of any.

        Digests have one length, a comparison reads them to their ends, and all keys are compared.
        """
        given, found = _digest(shown), False
        for digest in self._digests:
            found |= hmac.compare_digest(digest, given)
        return found

    def admit(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request with these headers may ask: by `Authorization: Bearer KEY` or `x-api-key: KEY`."""
        if not self._digests:
            return True
        shown = [value for name, value in headers if name == b"x-api-key"]
        bearers = (BEARER.fullmatch(value) for name, value in headers if name == b"authorization")
        shown += [bearer[1] for bearer in bearers if bearer is not None]
        return any(self.open(key) for key in shown)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def read_keys(path: str | None, environment: Mapping[str, str]) -> tuple[Keys, list[str]]:
    """The keys of a file, one a line, and that of the environment; and what is to be warned of. Raises ConfigError.

    No message has a key in it.
    """
    keys, warnings = [], []
    if path is not None:
        where = f"--api_key_file={shown_path(path)}"
        try:
            with open(path, encoding="ascii") as file:
                mode = os.fstat(file.fileno()).st_mode
                lines = [line.strip() for line in file]
        except OSError as error:
            raise ConfigError(f"{where}: {reason(error)}") from None
        except UnicodeError:
            raise ConfigError(f"{where}: a key has characters that are not ASCII") from None
        for number, line in enumerate(lines, 1):
            if line and not SOUND.fullmatch(line):
                raise ConfigError(f"{where}: line {number} is no key: one stands on a line, without spaces")
        keys = [line for line in lines if line]
        if not keys:
            raise ConfigError(f"{where}: holds no key")
        if os.name == "posix" and mode & 0o077:
            warnings.append(f"{where} may be read by other users of this machine: chmod 600 {shown_path(path)}")
    if VARIABLE in environment:
        key = environment[VARIABLE].strip()
        if not SOUND.fullmatch(key):
            raise ConfigError(f"{VARIABLE} is set and holds no key: one word of ASCII characters")
        keys.append(key)
    return Keys(keys), warnings
