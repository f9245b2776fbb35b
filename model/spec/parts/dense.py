"""The feed-forward part that every token goes through. What it computes is in `model.network.ffn.dense`."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from packlight.model.spec.weight import Segment, Weight

if TYPE_CHECKING:
    from packlight.model.spec.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class DensePart:
    """Two or three matrices, D to F and back."""

    name: str = "dense"

    def weights(self, cfg: "ModelConfig") -> Iterator[Weight]:
        D, F, ffn = cfg.embedding_length, cfg.feed_forward_length, cfg.architecture.ffn
        features = Segment("F", F)
        if ffn.fused:
            yield Weight("ffn_up", (2 * F, D), "rows", (features, features))
        else:
            if ffn.kind != "gelu":
                yield Weight("ffn_gate", (F, D), "rows", (features,))
            yield Weight("ffn_up", (F, D), "rows", (features,))
        yield Weight("ffn_down", (D, F), "inputs", (features,))
