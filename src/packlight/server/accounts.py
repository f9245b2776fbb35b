"""What one request came to: the numbers that its access line and the metrics are made of. Holds no text of it,
unless the server is told to say texts.
"""

import dataclasses
import time
from collections.abc import MutableMapping
from typing import Any

from packlight.common.text import shown

CLIENT_LEFT = 499  # the status of an answer that nobody waited for, as nginx has it
KEY = "account"  # in a scope's state, so that handlers have it as `request.state.account`


@dataclasses.dataclass
class Account:
    """Filled in by whoever knows; None is what does not apply, or is not known."""

    method: str
    path: str
    began: float = dataclasses.field(default_factory=time.perf_counter)
    status: int | None = None  # None until an answer begins
    complete: bool = False  # the answer was sent to its end
    reason: str | None = None  # the code of the error that refused the request, or ended its stream
    prompt_tokens: int | None = None  # with those that were cached
    cached_tokens: int | None = None
    generated_tokens: int | None = None
    drafted_tokens: int = 0  # that were guessed
    accepted_tokens: int = 0  # and right
    first_token_s: float | None = None  # from the request's head to its first token
    queue_s: float | None = None  # without a slot
    texts: list[str] | None = None  # prompts and answers, where the server is told to say them

    @property
    def seconds(self) -> float:
        """Since the request's head came."""
        return time.perf_counter() - self.began

    @property
    def code(self) -> int:
        """The status, or the one of an answer that never began."""
        return CLIENT_LEFT if self.status is None else self.status

    def line(self) -> str:
        """The request's access line."""
        line = f"{shown(self.method, 16)} {shown(self.path, 120)} {self.code} in {self.seconds:.3f} s"
        parts = []
        if self.prompt_tokens is not None:
            parts.append(f"{self.prompt_tokens} + {self.generated_tokens or 0} tokens")
        if self.cached_tokens:
            parts.append(f"{self.cached_tokens} cached")
        if self.drafted_tokens:
            parts.append(f"{self.accepted_tokens} of {self.drafted_tokens} drafts right")
        if self.first_token_s is not None:
            parts.append(f"first after {self.first_token_s:.3f} s")
        if self.queue_s is not None:
            parts.append(f"waited {self.queue_s:.3f} s")
        if self.reason is not None:
            parts.append(self.reason)
        if self.status is not None and not self.complete:
            parts.append("not sent to its end")
        return line + (f": {', '.join(parts)}" if parts else "")


def account_of(scope: MutableMapping[str, Any]) -> Account:
    """The account of the request whose scope this is; a new one where it has none."""
    accounts = scope.setdefault("state", {})
    if KEY not in accounts:
        accounts[KEY] = Account(scope["method"], scope["path"])
    return accounts[KEY]
