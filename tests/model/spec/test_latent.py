"""What files say of latent attention: which shape of file it is, what is contradictory, and how scores are scaled."""

import math

import pytest
from golden_models import metadata

from packlight.common.errors import GGUFError, UnsupportedError
from packlight.model.network.mixers.mla import score_scale
from packlight.model.network.rope import magnitude
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.positions import Sharpening

YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 40.0}


def read(name="deepseek2", **changes):
    """The config of a recipe's keys with some changed; None takes a key away."""
    keys, arch = dict(metadata(name)), metadata(name)["general.architecture"]
    for key, value in changes.items():
        full = key if "tokens" in key else f"{arch}.{key}"
        keys.pop(full, None)
        keys |= {} if value is None else {full: value}
    return ModelConfig.from_metadata(keys)


def test_a_new_file_states_the_widths_of_heads_and_an_old_one_has_no_others():
    new, old = read().latent, read("deepseek2-lite").latent
    assert (new.heads, new.q_rank, new.kv_rank, new.rotated) == (4, 48, 32, 8)
    assert (new.key_length, new.value_length, new.plain, new.width, new.split) == (24, 16, 16, 40, True)
    assert (old.key_length, old.value_length, old.q_rank, old.split) == (24, 16, 0, False)


@pytest.mark.parametrize("layers", [26, 27])
def test_a_lite_model_is_known_by_its_depth_whatever_rank_it_states(layers):
    cfg = read(block_count=layers, **{"attention.q_lora_rank": 48})
    assert cfg.latent.q_rank == 0
    assert "deepseek2.attention.q_lora_rank" in cfg.unread


def test_a_model_of_48_layers_is_lite_with_the_tokens_of_one():
    tokens = {"tokenizer.ggml.tokens": ["x"] * 128256, "vocab_size": None}
    assert read(block_count=48, **tokens).latent.q_rank == 0
    assert read(block_count=48).latent.q_rank == read(block_count=47, **tokens).latent.q_rank == 48
    # a block that predicts a further token is no layer
    assert read(block_count=28, **{"nextn_predict_layers": 1}).latent.q_rank == 0
    assert read(block_count=27, **{"nextn_predict_layers": 1}).latent.q_rank == 0
    assert read(block_count=26, **{"nextn_predict_layers": 1}).latent.q_rank == 48


@pytest.mark.parametrize("rank", [0, None])
def test_queries_may_be_made_in_one_product(rank):
    assert read(**{"attention.q_lora_rank": rank}).latent.q_rank == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention.kv_lora_rank": None}, "mandatory key 'deepseek2.attention.kv_lora_rank' is missing"),
        ({"rope.dimension_count": None}, "mandatory key 'deepseek2.rope.dimension_count' is missing"),
        ({"rope.dimension_count": 7}, r"'deepseek2.rope.dimension_count': 7 is odd"),
        ({"rope.dimension_count": 24}, r"'deepseek2.attention.key_length_mla': 24 is outside 25.."),
        ({"attention.value_length_mla": None}, "mandatory key 'deepseek2.attention.value_length_mla' is missing"),
        ({"attention.key_length_mla": None}, "mandatory key 'deepseek2.attention.key_length_mla' is missing"),
        (
            {"attention.key_length": 24},
            r"'deepseek2.attention.key_length': 24 is not 40, the width of what heads share",
        ),
        ({"attention.value_length": 16}, r"'deepseek2.attention.value_length': 16 is not 32"),
        ({"attention.temperature_scale": 0.1}, r"temperature_scale': is stated without 'attention.temperature_length'"),
    ],
)
def test_what_is_missing_impossible_or_at_odds_is_named(changes, said):
    with pytest.raises(GGUFError, match=said):
        read(**changes)


def test_only_yarn_stretches():
    with pytest.raises(
        UnsupportedError, match=r"'deepseek2.rope.scaling.factor': 8.0 is not supported; .* only YaRN's"
    ):
        read(**{"rope.scaling.type": "linear"})


def test_queries_are_sharpened_from_the_stated_length_on():
    assert read("mistral4").sharpening == Sharpening(pytest.approx(0.4), 8)
    assert read("mistral4", **{"attention.temperature_scale": 0.0}).sharpening == Sharpening()


@pytest.mark.parametrize("layers", [47, 48])
def test_the_router_of_glm_flash_is_known_by_depth_and_tokens(layers):
    tokens = {"tokenizer.ggml.tokens": ["x"] * 154880, "vocab_size": None, "expert_gating_func": None}
    cfg = read(block_count=layers, **tokens)
    assert cfg.routing.scores == "sigmoid"
    assert ("deepseek2.expert_gating_func", 2) in cfg.defaulted
    assert read(block_count=46, **tokens).routing.scores == "softmax"
    assert read(block_count=layers, **{**tokens, "tokenizer.ggml.tokens": ["x"] * 300}).routing.scores == "softmax"
    assert read(block_count=layers, **{**tokens, "expert_gating_func": 1}).routing.scores == "softmax"


# (architecture, log multiplier of the file) -> what rotation is multiplied with, and the root of what whole scores are,
# by llama.cpp: `kq_scale` of its deepseek2 graph, and `yarn_attn_factor` of its context times ggml's own factor.
SCALES = {
    ("deepseek2", 0.1): lambda ln: (1, 1 + 0.1 * ln),
    ("deepseek2", 0.0707): lambda ln: (1, 1 + 0.0707 * ln),
    ("deepseek2", None): lambda ln: (1 + 0.1 * ln, 1 + 0.1 * ln),
    ("mistral4", 0.1): lambda ln: (1, 1 + 0.1 * ln),
    ("mistral4", 0.05): lambda ln: ((1 + 0.1 * ln) / (1 + 0.05 * ln), 1 + 0.1 * ln),
}


@pytest.mark.parametrize("case", SCALES, ids=str)
def test_yarn_sharpens_whole_scores(case):
    architecture, log_multiplier = case
    cfg = read(architecture, **YARN, **{"rope.scaling.yarn_log_multiplier": log_multiplier})
    rotation, scores = SCALES[case](math.log(40))
    assert magnitude(cfg.rope_scaling) == pytest.approx(rotation)
    assert score_scale(cfg.latent, cfg.rope_scaling) == pytest.approx(scores**2 / math.sqrt(24))
