"""How a model is served, in one record: what flags say, in the server's words."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from packlight.server.keys import Keys
from packlight.server.limits import Limits
from packlight.server.origins import Origins


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that a user may choose of a server."""

    host: str = "127.0.0.1"
    port: int = 8080  # 0: any that is free
    keys: Keys = dataclasses.field(default_factory=Keys)
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    limits: Limits = dataclasses.field(default_factory=Limits)
    names: tuple[str, ...] = ()  # of the model, the one that it is shown under first
    max_queue: int | None = None  # requests that may wait for a slot; None: as many as `limits.most_waiting` has
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of sampling, where a body says nothing
    warn_unknown: bool = False  # unknown fields of a body are named in a header, not refused
    generic_tools: bool = False  # where a template has no place for tools, the model is told in words of ours
    log_prompts: bool = False  # prompts and answers are said beside the access lines

    @property
    def origins(self) -> Origins:
        """Raises ConfigError for names that are none."""
        return Origins(self.host, self.allowed_hosts, self.cors_origins)
