"""A mixture of experts, of which each token goes through a few. What it computes is in `model.network.ffn.moe`."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from packlight.model.spec.architectures import RouterScores
from packlight.model.spec.parts.dense import DensePart
from packlight.model.spec.weight import Segment, Weight

if TYPE_CHECKING:
    from packlight.model.spec.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Routing:
    """How a router's logits choose experts, and weigh what these give."""

    # The logits become a softmax over all experts, over the chosen ones alone, or sigmoids.
    scores: RouterScores = "softmax"
    normed: bool = True  # the chosen experts' weights are made to sum to 1
    scale: float = 1.0  # they are multiplied by it
    groups: int = 1  # experts lie in so many groups
    groups_used: int = 1  # of which the best so many are chosen from


@dataclasses.dataclass(frozen=True)
class MoePart:
    """A router, E experts of two or three matrices each, and what every token goes through beside them."""

    shared: DensePart | None = None
    name: str = "moe"

    def weights(self, cfg: "ModelConfig") -> Iterator[Weight]:
        D, E, F = cfg.embedding_length, cfg.expert_count, cfg.expert_feed_forward_length
        M = cfg.latent_length or D  # what experts read and give
        experts, family = (Segment("E", E),), cfg.architecture.ffn
        yield Weight("ffn_gate_inp", (E, D))
        options = family.experts
        assert options is not None, cfg.architecture.name
        if options.beside_dense:
            yield Weight("ffn_gate_inp.scale", (D,), kind="vector", suffix="")  # of the router's norm
            yield Weight("pre_ffw_norm_2", (D,), kind="vector")
            yield Weight("post_ffw_norm_1", (D,), kind="vector")
            yield Weight("post_ffw_norm_2", (D,), kind="vector")
        if family.gated:
            replaced = ("ffn_gate_exps", "ffn_up_exps")
            yield Weight("ffn_gate_up_exps", (E, 2 * F, M), "experts", experts, replaces=replaced)
            yield Weight("ffn_gate_exps", (E, F, M), "experts", experts)
        yield Weight("ffn_up_exps", (E, F, M), "experts", experts)
        yield Weight("ffn_down_exps", (E, M, F), "experts", experts)
        if cfg.latent_length:
            yield Weight("ffn_latent_down", (M, D))
            yield Weight("ffn_latent_up", (D, M))
        if options.choice_bias != "never":
            optional = options.choice_bias == "may"
            yield Weight("exp_probs_b.bias", (E,), kind="bias", suffix="", optional=optional)
        if self.shared is not None:
            yield from self.shared.weights(cfg)
            if options.shared_gate:
                yield Weight("ffn_gate_inp_shexp", (D,), kind="vector")
