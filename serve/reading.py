"""One text on its way to what a pooling makes of its hidden states. Knows no model and no device; imports no jax."""

from typing import TYPE_CHECKING

import numpy as np

from packlight.common.errors import NonFiniteLogitsError, PacklightError
from packlight.model.sampling.config import SamplingConfig
from packlight.model.spec.pooling import kept_of, pooled
from packlight.serve.prefix import Keep
from packlight.serve.told import States

if TYPE_CHECKING:
    from packlight.model.sampling.penalties import Steering
    from packlight.serve.engine import Event
    from packlight.serve.told import Told

NOTHING = SamplingConfig(max_tokens=0)


class Reading:
    """One text that is read as a prompt is, and answered by no token.

    Of each chunk's hidden states only what its pooling needs is kept, as whoever books them may have no time.
    """

    sampling = NOTHING
    keep = Keep.NOTHING  # the states of what the cache has are gone
    salt = ""
    states = True
    predicted = ()
    began: float  # time.perf_counter() when it was submitted

    def __init__(self, prompt: list[int], pooling: str):
        """pooling: a name out of `model.spec.pooling`, but "rank"."""
        self.prompt, self._pooling = prompt, pooling
        self._kept: np.ndarray | None = None
        self.began, self.complete = 0.0, False
        self.failure: PacklightError | None = None

    @property
    def steering(self) -> "Steering":
        """Of no logits; its module imports jax."""
        from packlight.model.sampling.penalties import Steering

        return Steering(NOTHING)

    def take(self, event: "Event | Told") -> None:
        """Books the hidden states of a chunk."""
        assert isinstance(event, States)
        self._kept = kept_of(self._pooling, self._kept, event.hidden)
        self.complete = bool(event.ended)
        if self.complete and not np.isfinite(self._kept).all():
            self.failure = NonFiniteLogitsError("the model's hidden states are NaN or infinite")

    def fresh(self) -> str:
        """Nothing: no text follows."""
        return ""

    def check(self) -> None:
        """Raises what it ended for, if it ended for a failure."""
        if self.failure is not None:
            raise self.failure

    @property
    def row(self) -> np.ndarray:
        """What the pooling made of a text that is read. Raises as `check` does."""
        self.check()
        assert self._kept is not None
        return pooled(self._pooling, self._kept, len(self.prompt))
