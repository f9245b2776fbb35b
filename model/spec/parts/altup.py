"""Several streams of hidden states, one of which layers run on, as in Gemma 3n. What it computes is in
`model.network.altup`.
"""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from packlight.model.spec.weight import Weight

if TYPE_CHECKING:
    from packlight.model.spec.config import ModelConfig

STREAMS = 4
RANK = 64  # of Laurel, in every model


@dataclasses.dataclass(frozen=True)
class AltUpPart:
    """How a layer predicts every stream before it runs on the first, and corrects them after it."""

    name: str = "altup"

    def weights(self, cfg: "ModelConfig") -> Iterator[Weight]:
        D = cfg.embedding_length
        yield Weight("altup_router_norm", (D,), kind="vector")
        yield Weight("altup_router", (STREAMS, D))
        yield Weight("altup_predict_coef", (STREAMS**2, STREAMS))
        yield Weight("altup_correct_coef", (STREAMS, STREAMS))
        yield Weight("altup_correct_scale", (D,), kind="vector")

    def tables(self, cfg: "ModelConfig") -> Iterator[Weight]:
        """Its tensors that are of no layer: what makes the other streams of the first, and what takes them back."""
        D = cfg.embedding_length
        yield Weight("altup_proj", (STREAMS - 1, D, D))
        yield Weight("altup_unembd_proj", (STREAMS - 1, D, D))


@dataclasses.dataclass(frozen=True)
class LaurelPart:
    """A narrow way beside attention, D to RANK and back."""

    name: str = "laurel"

    def weights(self, cfg: "ModelConfig") -> Iterator[Weight]:
        D = cfg.embedding_length
        yield Weight("laurel_l", (RANK, D))
        yield Weight("laurel_r", (D, RANK))
        yield Weight("laurel_post_norm", (D,), kind="vector")
