"""What each layer adds of a second embedding, as in Gemma 3n. What it computes is in `model.network.perlayer`."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from packlight.model.spec.weight import Segment, Weight

if TYPE_CHECKING:
    from packlight.model.spec.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class PerLayerPart:
    """A gate from D to P, which the layer's own part of the second embedding is multiplied with, and the way back."""

    width: int  # P
    name: str = "per_layer"

    @property
    def features(self) -> Segment:
        return Segment("F", self.width)

    def weights(self, cfg: "ModelConfig") -> Iterator[Weight]:
        D, P, features = cfg.embedding_length, self.width, self.features
        yield Weight("inp_gate", (P, D), "rows", (features,))
        yield Weight("proj", (D, P), "inputs", (features,))
        yield Weight("post_norm", (D,), kind="vector")

    def tables(self, cfg: "ModelConfig") -> Iterator[Weight]:
        """Its tensors that are of no layer: the embedding, and what is added to it for every layer."""
        D, V, every = cfg.embedding_length, cfg.vocab_size, cfg.block_count * self.width
        yield Weight("per_layer_token_embd", (V, every), "rows", (Segment("V", V),), looked_up=True)
        yield Weight("per_layer_model_proj", (every, D), "rows", (Segment("P", every),))
        yield Weight("per_layer_proj_norm", (self.width,), kind="vector")
