"""Layers as periods of runs: nothing is lost, little is traced, and what would be too much is refused."""

import time

import numpy as np
import pytest
from golden_models import metadata
from hypothesis import given
from hypothesis import strategies as st
from processor import slowness

from packlight.common.errors import GGUFError, UnsupportedError
from packlight.model.spec.cache import CacheShape
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.layers import MAX_TRACED, Layer, periods, traced
from packlight.model.spec.parts.attention import AttentionPart, Source
from packlight.model.spec.parts.dense import DensePart
from packlight.model.spec.parts.moe import MoePart
from packlight.model.spec.parts.perlayer import PerLayerPart
from packlight.model.spec.parts.shortconv import ShortConvPart
from packlight.model.spec.state import Room
from packlight.model.spec.weights import declare

KINDS = {
    "a": Layer((AttentionPart(4, 2, 16),), DensePart(96)),
    "w": Layer((AttentionPart(4, 2, 16, 20, name="window"),), DensePart(96)),
    "c": Layer((ShortConvPart(3),), DensePart(96)),
    "m": Layer((ShortConvPart(3),), MoePart()),
    "b": Layer((AttentionPart(4, 2, 16),), MoePart()),
}


def made_of(letters):
    return [KINDS[letter] for letter in letters]


@given(st.text("awc", min_size=1, max_size=60))
def test_periods_are_the_layers_again(letters):
    found = periods(made_of(letters))
    again = [run.layer for p in found for _ in range(p.repeats) for run in p.runs for _ in range(run.length)]
    assert again == made_of(letters)
    changes = sum(a != b for a, b in zip(letters, letters[1:], strict=False))
    assert traced(made_of(letters)) <= 1 + changes
    for period in found:
        assert period.counts["layer"] == sum(run.length for run in period.runs)


@pytest.mark.parametrize(
    ("letters", "bodies"),
    [
        ("a" * 80, 1),  # Llama
        ("wa" * 21, 2),  # gemma2
        ("wwwwwa" * 5 + "wwww", 3),  # gemma3 4B
        ("ccca" * 12, 2),  # Qwen 3.5
        ("ccaccaccacacacac", 5),  # LFM2 1.2B
        ("cc" + "bmmm" * 4 + "bmm" * 2, 5),  # LFM2 8B-A1B
    ],
)
def test_a_kind_is_traced_once_where_it_repeats(letters, bodies):
    assert traced(made_of(letters)) == bodies


def lfm2(kv_heads, **keys):
    known = {**metadata("lfm2"), "lfm2.block_count": len(kv_heads), **{f"lfm2.{k}": v for k, v in keys.items()}}
    return ModelConfig.from_metadata({**known, "lfm2.attention.head_count_kv": np.array(kv_heads, np.int32)})


def test_layers_without_kv_heads_convolve():
    layers = lfm2([0, 2, 0, 1]).layers
    assert [type(layer.mixers[0]).__name__ for layer in layers] == ["ShortConvPart", "AttentionPart"] * 2
    assert [layer.mixers[0].name for layer in layers] == [
        "shortconv",
        "attention_2_kv_heads",
        "shortconv",
        "attention_1_kv_heads",
    ]
    assert {layer.mixers[0].name for layer in lfm2([0, 4, 4]).layers} == {"shortconv", "attention"}
    assert {layer.mixers[0].name for layer in lfm2([0, 0]).layers} == {"shortconv"}
    assert [layer.ffn.name for layer in ModelConfig.from_metadata(metadata("lfm2moe")).layers] == [
        "dense",
        *["moe"] * 3,
    ]


def test_all_attention_layers_of_an_lfm2_with_a_window_slide():
    """Source: llama.cpp's hyperparameters of lfm2."""
    mixers = [layer.mixers[0] for layer in lfm2([0, 2, 2], **{"attention.sliding_window": 8}).layers]
    assert mixers == [ShortConvPart(3), *[AttentionPart(4, 2, 16, 8, name="window")] * 2]


@pytest.mark.parametrize(
    ("kv_heads", "message"),
    [
        ([0, 3], "'lfm2.attention.head_count_kv': 3 does not divide 4 query heads"),
        ([0, -1], "'lfm2.attention.head_count_kv': -1 is outside 0..4"),
        ([0, 8], "'lfm2.attention.head_count_kv': 8 is outside 0..4"),
    ],
)
def test_impossible_kv_heads_are_refused(kv_heads, message):
    with pytest.raises(GGUFError, match=message):
        lfm2(kv_heads)


def gemma4(kinds, kv_heads, **keys):
    """kinds: a letter for each layer, "w" for one with a window. Any key is of the recipe whose last layers share."""
    known = {**metadata("gemma4-e"), "gemma4.block_count": len(kinds), "gemma4.feed_forward_length": 96}
    known["gemma4.attention.sliding_window_pattern"] = np.array([kind == "w" for kind in kinds])
    known["gemma4.attention.head_count_kv"] = np.array(kv_heads, np.int32)
    return ModelConfig.from_metadata(known | {f"gemma4.attention.{key}": value for key, value in keys.items()})


def test_the_last_layers_attend_to_what_others_keep():
    """Those of the last layer before them, of those with their own, that sees as much; the cache has each once."""
    cfg = gemma4("wwawwa", [2, 2, 1, 2, 2, 1], shared_kv_layers=3)
    window, everything = AttentionPart(4, 2, 8, 8, name="window"), AttentionPart(4, 1, 16)
    mixers = [layer.mixers[0] for layer in cfg.layers]
    assert mixers[:3] == [window, window, everything]
    reader = AttentionPart(4, 2, 8, 8, name="shared_window", reads=Source("window", 1))
    assert mixers[3:] == [
        reader,
        reader,
        AttentionPart(4, 1, 16, name="shared_attention", reads=Source("attention", 0)),
    ]
    assert [layer.per_layer for layer in cfg.layers] == [PerLayerPart(36)] * 6
    state = CacheShape(cfg, Room(3, 256, 16, "float32")).state
    assert {name: kept.k.shape for name, kept in state.items()} == {
        "window": (2, 3, 2, 128, 8),
        "attention": (1, 3, 1, 256, 16),
    }
    made = {(weight.part, weight.name) for weight in declare(cfg)}
    assert ("attention", "attn_k") in made
    assert ("shared_attention", "attn_k") not in made


@pytest.mark.parametrize(
    ("kinds", "kv_heads", "shared", "message"),
    [
        ("wwwa", [1, 1, 1, 1], 1, "1: layer 3 needs one that sees everything among the first 3, with as many kv heads"),
        ("aawa", [1, 1, 1, 1], 2, "2: layer 2 needs one that slides among the first 2, with as many kv heads"),
        ("waaa", [1, 1, 2, 1], 1, "1: layer 3 needs one that sees everything among the first 3, with as many kv heads"),
        ("wawa", [1, 1, 1, 1], 4, "4 is outside 0..3"),
        ("wawa", [1, 1, 1, 1], -1, "-1 is outside 0..3"),
        ("wawa", [1, 1, 1, 1], 1.0, "is a floating-point number, an integer is needed"),
    ],
)
def test_layers_that_cannot_share_are_refused(kinds, kv_heads, shared, message):
    with pytest.raises(GGUFError, match=rf"key 'gemma4\.attention\.shared_kv_layers': {message}"):
        gemma4(kinds, kv_heads, shared_kv_layers=shared)


def test_layers_without_any_pattern_are_refused_quickly():
    rng = np.random.default_rng(0)
    began = time.process_time()
    with pytest.raises(
        UnsupportedError, match=rf"'lfm2.block_count': its 512 layers alternate .*; {MAX_TRACED} can be"
    ):
        lfm2(rng.choice([0, 1, 2, 4], 512))
    assert time.process_time() - began < 5 * slowness()


@pytest.mark.parametrize(
    ("key", "value"), [("shortconv.l_cache", 1), ("shortconv.l_cache", 0), ("shortconv.l_cache", 2.0)]
)
def test_impossible_taps_are_refused(key, value):
    with pytest.raises(GGUFError, match=f"'lfm2.{key}'"):
        lfm2([0, 2], **{key: value})


@pytest.mark.parametrize(
    ("value", "error"), [(0, UnsupportedError), (3, UnsupportedError), (-1, GGUFError), ("x", GGUFError)]
)
def test_an_unknown_router_is_refused(value, error):
    keys = {**metadata("lfm2moe"), "lfm2moe.expert_gating_func": value}
    with pytest.raises(error, match=r"'lfm2moe\.expert_gating_func'"):
        ModelConfig.from_metadata(keys)
