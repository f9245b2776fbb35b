"""What a GGUF file says of a mixture of experts. Imports no jax."""

from typing import Any

from packlight.common.errors import UnsupportedError
from packlight.model.spec.architectures import Experts, RouterScores
from packlight.model.spec.keys import MAX_LAYERS, Keys, unless_equal
from packlight.model.spec.parts.moe import Routing

_GATINGS: dict[int, RouterScores] = {1: "softmax", 2: "sigmoid"}


def _gating(keys: Keys, family: Experts) -> RouterScores:
    """What the router's logits become. Source: llama.cpp's `llama_expert_gating_func_type`."""
    key, known = "expert_gating_func", _GATINGS
    depths, tokens = family.sigmoids_if
    default = "sigmoid" if keys.layers in depths and len(keys.tokens or ()) == tokens else family.scores
    if family.stated == "never":
        return default
    numbers = {scores: number for number, scores in known.items()}
    stated = keys.integer(key, default=numbers[default] if family.stated == "may" else None, low=0)
    if stated == 0 and family.stated == "may":  # llama.cpp: not stated
        return default
    if stated not in known:
        said = ", ".join(f"{number} ({name})" for number, name in known.items())
        raise UnsupportedError(f"key '{keys.full(key)}': unknown function {stated}; supported: {said}")
    return known[stated]


def read_experts(keys: Keys, ffn: tuple[int, ...]) -> dict[str, Any]:
    """The fields that say how many experts there are, where, how wide, and how they are chosen; none for a dense model.

    ffn: F of each layer, which is an expert's where the file gives them none.

    Sources: llama.cpp's `load_hparams` of each family, and its `build_moe_ffn`.
    """
    family = keys.architecture.ffn.experts
    nothing = {"expert_count": 0, "expert_used_count": 0}
    if family is None:
        return nothing
    count = keys.integer("expert_count", default=None if family.must else 0, low=int(family.must), high=1024)
    used = keys.integer("expert_used_count", default=None if count else 0, low=min(count, 1), high=count)
    if not count:
        return nothing
    stated = bool(unless_equal(ffn)) or family.beside_dense
    width = keys.integer("expert_feed_forward_length", default=None if stated else ffn[0])
    groups, groups_used = 1, 1
    if family.grouped and (groups := keys.integer("expert_group_count", 1, low=0, high=count) or 1) > 1:
        if count % groups:
            keys.fail("expert_group_count", f"{groups} does not divide {count} experts")
        groups_used = keys.integer("expert_group_used_count", high=groups)
        if groups_used * (count // groups) < used:
            keys.fail("expert_group_used_count", f"{groups_used} groups have fewer than {used} experts")
    routing = Routing(
        scores=_gating(keys, family),
        normed=keys.boolean("expert_weights_norm", default=False) if family.normed is None else family.normed,
        scale=(keys.number("expert_weights_scale", 0.0, low=0.0, high=1e6) or 1.0) if family.scaled else 1.0,
        groups=groups,
        groups_used=groups_used,
    )
    return {
        "expert_count": count,
        "expert_used_count": used,
        "expert_feed_forward_length": width,
        "shared_feed_forward_length": _shared_width(keys, family, width),
        "latent_length": keys.integer("moe_latent_size", 0, low=0),
        "routing": routing,
        "with_experts": _with_experts(keys, family),
    }


def _shared_width(keys: Keys, family: Experts, width: int) -> int:
    """F of the experts that every token goes through: by its own key, or that of so many experts."""
    own_width = keys.has("expert_shared_feed_forward_length")
    stated = keys.has("expert_shared_count") or (family.shared is None and not own_width)
    count = keys.integer("expert_shared_count", low=0, high=1024) if stated else family.shared or 0
    return keys.integer("expert_shared_feed_forward_length", default=width * count, low=0)


def _with_experts(keys: Keys, family: Experts) -> tuple[bool, ...]:
    """For each layer whether it has experts, () where all have."""
    dense = keys.integer("leading_dense_block_count", 0, low=0, high=keys.layers) if family.leading_dense else 0
    every = keys.integer(family.every, low=1, high=MAX_LAYERS) if family.every else 1
    turn = 1 % every if family.second_of_every else every - 1
    found = tuple(layer >= dense and layer % every == turn for layer in range(keys.layers))
    return () if all(found) else found
