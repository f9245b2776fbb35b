"""What files say of Mamba-2: which layers have it, what is refused, which epsilon counts."""

import numpy as np
import pytest
from golden_models import metadata

from packlight.common.errors import GGUFError
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.layers import MAX_TRACED, traced
from packlight.model.spec.parts.mamba2 import Mamba2Part


def config(name, **changes):
    """Of one of ours with other keys, or without those that are None."""
    keys = metadata(name)
    prefix = keys["general.architecture"]
    keys = {**keys, **{f"{prefix}.{key}": value for key, value in changes.items()}}
    return ModelConfig.from_metadata({key: value for key, value in keys.items() if value is not None})


def kinds(cfg):
    return [" + ".join(part.name.split("_")[0] for part in layer.parts) for layer in cfg.layers]


def test_which_layers_have_what():
    assert kinds(config("granitehybrid")) == ["mamba2 + moe", "mamba2 + moe", "attention + moe", "mamba2 + moe"]
    parts = kinds(config("nemotron_h"))
    assert [part for part in parts if part != "dense"] == ["mamba2", "mamba2", "attention", "mamba2"]
    assert [at for at, part in enumerate(parts) if part == "dense"] == [1, 4]
    assert kinds(config("nemotron_h_moe")) == ["mamba2", "moe", "attention", "mamba2", "moe"]
    assert set(kinds(config("falcon-h1"))) == {"attention + mamba2 + dense"}
    assert set(kinds(config("mamba2"))) == {"mamba2"}


def test_a_part_has_what_the_keys_say():
    keys = {"time_step_rank": 8, "group_count": 4, "inner_size": 160, "state_size": 24, "conv_kernel": 3}
    cfg = config("falcon-h1", **{f"ssm.{key}": value for key, value in keys.items()})
    assert cfg.mamba2 == Mamba2Part(heads=8, groups=4, width=20, memory=24, taps=3)


@pytest.mark.parametrize(
    "pattern",
    [
        "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",  # Nemotron 3 Nano
        "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",  # Nemotron Nano 9B v2
        "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",  # Nemotron-H 8B
    ],
)
def test_patterns_that_people_run_are_traced_by_kind(pattern):
    kv_heads = np.array([2 * (kind == "*") for kind in pattern], np.int32)
    widths = np.array([64 * (kind in "-E") for kind in pattern], np.int32)
    changes = {"attention.head_count_kv": kv_heads, "feed_forward_length": widths, "block_count": len(pattern)}
    assert traced(config("nemotron_h", **changes).layers) <= MAX_TRACED


def test_a_layer_that_would_be_two_parts_is_refused():
    widths = np.array([0, 96, 0, 32, 64, 0], np.int32)
    with pytest.raises(GGUFError, match="'nemotron_h.feed_forward_length': layer 3 has 2 kv heads and 32 features"):
        config("nemotron_h", feed_forward_length=widths)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ssm.group_count", 3, "3 does not divide 4 heads"),
        ("ssm.inner_size", 130, "130 is not a multiple of 4 heads"),
        ("ssm.conv_kernel", 1, "1 is outside 2"),
        ("ssm.state_size", 0, "0 is outside 1"),
        ("ssm.time_step_rank", None, "is missing"),
        ("attention.head_count", 4, "4 is outside 0..0"),
        ("feed_forward_length", 96, "96 is outside 0..0"),
    ],
)
def test_impossible_keys_are_refused(key, value, said):
    with pytest.raises(GGUFError, match=f"'mamba2.{key}'.*{said}"):
        config("mamba2", **{key: value})


def test_the_epsilon_of_rms_norms_counts_where_a_file_has_it():
    rms, layer = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
    assert np.isclose(config("nemotron_h", **{rms: 0.5, layer: 0.25}).norm_epsilon, 0.5)
    assert np.isclose(config("nemotron_h", **{rms: None, layer: 0.25}).norm_epsilon, 0.25)
    with pytest.raises(GGUFError, match="'nemotron_h.attention.layer_norm_epsilon' is missing"):
        config("nemotron_h", **{layer: None})


def test_last_blocks_that_predict_further_tokens_are_skipped():
    cfg = config("nemotron_h", nextn_predict_layers=2)
    assert (cfg.block_count, cfg.skipped_blocks) == (4, 2)
    assert len(cfg.layers) == 4
