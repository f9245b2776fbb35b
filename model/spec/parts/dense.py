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

    width: int  # F
    name: str = "dense"
    suffix: str = ""  # of its matrices' names: of those in a mixture of experts that every token goes through
    sparse: bool = False  # only the highest twentieth of its gates are let through

    @property
    def features(self) -> Segment:
        return Segment("F", self.width)

    @property
    def gate(self) -> str:
        return f"ffn_gate{self.suffix}"

    @property
    def up(self) -> str:
        return f"ffn_up{self.suffix}"

    @property
    def down(self) -> str:
        return f"ffn_down{self.suffix}"

    def weights(self, cfg: "ModelConfig") -> Iterator[Weight]:
        D, F, ffn, features = cfg.embedding_length, self.width, cfg.architecture.ffn, self.features
        if ffn.fused:
            yield Weight(self.up, (2 * F, D), "rows", (features, features))
        else:
            if ffn.gated:
                yield Weight(self.gate, (F, D), "rows", (features,))
            yield Weight(self.up, (F, D), "rows", (features,))
        yield Weight(self.down, (D, F), "inputs", (features,))
