"""A mixture of experts, of which each token goes through a few. What it computes is in `model.network.ffn.moe`."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from packlight.model.spec.weight import Segment, Weight

if TYPE_CHECKING:
    from packlight.model.spec.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class MoePart:
    """A router, and E experts of three matrices each."""

    name: str = "moe"

    def weights(self, cfg: "ModelConfig") -> Iterator[Weight]:
        D, E, F = cfg.embedding_length, cfg.expert_count, cfg.expert_feed_forward_length
        experts = (Segment("E", E),)
        yield Weight("ffn_gate_inp", (E, D))
        yield Weight("ffn_gate_exps", (E, F, D), "experts", experts)
        yield Weight("ffn_up_exps", (E, F, D), "experts", experts)
        yield Weight("ffn_down_exps", (E, D, F), "experts", experts)
        if cfg.architecture.ffn.choice_bias:
            yield Weight("exp_probs_b.bias", (E,), kind="bias", optional=True)
