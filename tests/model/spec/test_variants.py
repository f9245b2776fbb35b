"""Keys by which one file of a family differs from another: each changes what it should, or is refused by name."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from ggufs import write_llama
from golden_models import metadata

from packlight.common.errors import GGUFError, UnsupportedError
from packlight.model.network.rope import Turns, rope_divisors
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.positions import RopeScaling
from packlight.prepared import prepare

POSITIONS = [0, 1, 7, 40, 300]
WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"


def config(name, without=(), **changes):
    """A recipe's config with other keys; dots written as __."""
    arch = metadata(name)["general.architecture"]
    keys = {**metadata(name), **{f"{arch}.{key.replace('__', '.')}": value for key, value in changes.items()}}
    return ModelConfig.from_metadata({k: v for k, v in keys.items() if k.removeprefix(f"{arch}.") not in without})


def turned(cfg, layer):
    """Queries of one layer, rotated."""
    (mixer,) = cfg.layers[layer].mixers
    x = np.random.default_rng(0).normal(size=(1, len(POSITIONS), 1, cfg.key_length)).astype(np.float32)
    return np.asarray(Turns(cfg, jnp.asarray([POSITIONS], jnp.int32), None).rotate(jnp.asarray(x), mixer.window > 0))


def pattern(name, value, **changes):
    return config(name, attention__sliding_window_pattern=value, **changes).slides


def test_which_layers_have_a_window():
    """Source: llama.cpp `load_swa_pattern`: a layer slides unless it is the last of its period."""
    assert config("gemma2").slides == (True, False, True, False)
    assert config("gemma3").slides == (True,) * 5 + (False, True)
    assert config("gpt-oss").slides == (True, False, True, False)
    assert config("olmo2").slides == (False,) * 3
    assert config("olmo2", attention__sliding_window=8).slides == (True,) * 3  # each fourth would not
    assert config("olmo2", attention__sliding_window=8).sliding_window == 8
    assert config("gemma3", without=(WINDOW,)).slides == (False,) * 7  # Rnj-1
    assert config("qwen2").slides == (False,) * 3
    assert pattern("gemma2", 3) == (True, True, False, True)
    assert pattern("gemma2", 0) == (True,) * 4
    assert pattern("gemma2", 1) == (False,) * 4
    assert pattern("gemma2", np.array([False, True, True, False])) == (False, True, True, False)
    assert pattern("gemma2", np.array([0, 1, 1, 0], np.int32)) == (False, True, True, False)
    for wrong in (np.array([True]), np.ones(4, np.float32)):
        with pytest.raises(GGUFError, match=rf"'gemma2.{PATTERN}': is no array of 4 truth values"):
            pattern("gemma2", wrong)
    with pytest.raises(GGUFError, match=f"mandatory key 'gpt-oss.{WINDOW}' is missing"):
        config("gpt-oss", without=(WINDOW,))


def test_gemma4_must_say_which_layers_slide_and_may_say_how_wide_their_heads_are():
    key = "attention.key_length_swa"
    with pytest.raises(GGUFError, match=rf"'gemma4.{PATTERN}': is no array of 3 truth values"):
        pattern("gemma4", 3)
    with pytest.raises(GGUFError, match=f"mandatory key 'gemma4.{PATTERN}' is missing"):
        config("gemma4", without=(PATTERN,))
    widths = [layer.mixers[0].width for layer in config("gemma4").layers]
    assert widths == [8, 8, 16]
    same = config("gemma4", without=(key, "attention.value_length_swa", "rope.dimension_count_swa"))
    assert [layer.mixers[0].width for layer in same.layers] == [16] * 3
    with pytest.raises(UnsupportedError, match="'gemma4.attention.value_length_swa': 4 differs from 8"):
        config("gemma4", attention__value_length_swa=4)
    with pytest.raises(GGUFError, match="'gemma4.rope.dimension_count_swa': 16 is outside 1..8"):
        config("gemma4", without=("rope.dimension_count_swa",))
    with pytest.raises(GGUFError, match="'gemma4.rope.dimension_count_swa': 3 is odd"):
        config("gemma4", rope__dimension_count_swa=3)
    with pytest.raises(UnsupportedError, match=f"'gemma3.{key}': 8 is not supported; only 32 is"):
        config("gemma3", attention__key_length_swa=8)


def test_experts_beside_a_dense_mlp_state_their_own_width():
    with pytest.raises(GGUFError, match="mandatory key 'gemma4.expert_feed_forward_length' is missing"):
        config("gemma4-moe", without=("expert_feed_forward_length",))
    (part,) = {layer.ffn for layer in config("gemma4-moe").layers}
    assert (part.name, part.shared.width, part.shared.up) == ("moe", 96, "ffn_up")
    assert config("gemma4").softcaps == config("gemma4-e").softcaps == (0.0, 8.0)
    assert config("gemma4", without=("final_logit_softcapping",)).softcaps == (0.0, 30.0)


def test_gemma3_may_cap_its_logits():
    """Source: llama.cpp's graph of gemma3; scores are never capped there."""
    caps = {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0}
    assert config("gemma3").softcaps == (0.0, 0.0)
    assert config("gemma3", **caps).softcaps == (0.0, 5.0)
    assert config("gemma2", **caps).softcaps == (5.0, 5.0)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gpt-oss"])
def test_windows_may_turn_at_another_base(name):
    """Each layer turns as a model does whose base is its own."""
    own = config(name, rope__freq_base_swa=777.0)
    window, none = own.slides.index(True), own.slides.index(False)
    base = config(name, rope__freq_base=777.0, rope__freq_base_swa=777.0)
    np.testing.assert_array_equal(turned(own, window), turned(base, window))
    np.testing.assert_array_equal(turned(own, none), turned(config(name), none))
    assert np.abs(turned(own, window) - turned(own, none)).max() > 0.1


@pytest.mark.parametrize(("name", "plain"), [("olmo2", True), ("gemma3", True), ("gemma2", False)])
def test_which_windows_stretch(name, plain):
    """Those of OLMo 3 and gemma3 rotate as if the file named no scaling."""
    windows = {"attention__sliding_window": 16, "attention__sliding_window_pattern": 2, "rope__freq_base_swa": 5e5}
    scaling = {"rope__scaling__type": "yarn", "rope__scaling__factor": 8.0, "rope__scaling__attn_factor": 1.2}
    without, stretched = config(name, **windows), config(name, **windows, **scaling)
    assert np.array_equal(turned(without, 0), turned(stretched, 0)) == plain
    assert np.abs(turned(without, 1) - turned(stretched, 1)).max() > 0.1


def test_a_model_without_windows_turns_all_layers_alike():
    cfg = config("gemma3", attention__sliding_window=0)
    np.testing.assert_array_equal(turned(cfg, 0), turned(cfg, 5))
    np.testing.assert_array_equal(turned(cfg, 0), turned(config("gemma3"), 5))
    assert not any(cfg.slides)


def test_phi3_takes_the_divisors_of_its_context():
    """The short ones as far as the original context reaches, whatever kind of scaling the file names."""
    params = {"rope_factors_long": jnp.float32([4.0]), "rope_factors_short": jnp.float32([1.0])}
    cfg = config("phi3-longrope")
    assert cfg.rope_scaling == RopeScaling(original_context=128, attn_factor=cfg.rope_scaling.attn_factor)
    assert rope_divisors(cfg, params, 128) is params["rope_factors_short"]
    assert rope_divisors(cfg, params, 129) is params["rope_factors_long"]
    unstated = config("phi3-longrope", without=("rope.scaling.original_context_length",))
    assert rope_divisors(unstated, params, unstated.context_length) is params["rope_factors_short"]


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "lfm2",
            {"attention__causal": False},
            "key 'lfm2.attention.causal': False is not supported in layers that are",
        ),
        (
            "gpt-oss",
            {"attention__causal": False},
            "False is not supported in layers that are no attention, or that have",
        ),
        ("gemma2", {"attention__key_length_swa": 16}, "'gemma2.attention.key_length_swa': 16 .*; only 32 is"),
        ("qwen3moe", {"expert_group_count": 4}, "'qwen3moe.expert_group_count': 4 is not supported"),
    ],
)
def test_what_no_other_file_of_the_family_does_is_refused(name, changes, said):
    with pytest.raises(UnsupportedError, match=said):
        config(name, **changes)


def test_neutral_values_of_such_keys_are_read():
    changes = {"attention__causal": True, "nextn_predict_layers": 0, "attention__key_length_swa": 32}
    assert dataclasses.replace(config("gemma2", **changes), defaulted=()) == dataclasses.replace(
        config("gemma2"), defaulted=()
    )


def test_keys_that_nothing_reads_are_said(tmp_path):
    path = write_llama(tmp_path / "m.gguf", extra={"llama.attention.sliding_window": 8, "llama.novel": "x"})
    assert prepare(path).warnings == ["not read from the file: llama.attention.sliding_window, llama.novel"]
    assert prepare(write_llama(tmp_path / "n.gguf")).warnings == []
