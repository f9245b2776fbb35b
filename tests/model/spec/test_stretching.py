"""Positions that a caller stretches: frequencies by other formulas, the bits of files that say the same, refusals."""

import math
import types

import jax.numpy as jnp
import numpy as np
import pytest
from ggufs import write_llama
from golden_models import metadata
from running import SMALL

import packlight
from packlight.common.errors import ConfigError
from packlight.model.network.rope import Turns, inverse_frequencies, magnitude, rotation
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.positions import RopeScaling
from packlight.model.spec.rope_changes import ROPE, Rope, RopeChanges
from packlight.model.spec.stretching import in_words, stretched, too_long
from packlight.prepared import prepare

CONTEXT = 64
YARN = {"rope_scaling": "yarn", "rope_scale": 4}


def model(name="qwen2", changes=None, tensors=(), **keys):
    """A recipe's config with other keys, dots written as __, and with changes of the rotation."""
    arch = metadata(name)["general.architecture"]
    said = {**metadata(name), **{f"{arch}.{key.replace('__', '.')}": value for key, value in keys.items()}}
    file = types.SimpleNamespace(metadata=said, tensors=dict.fromkeys(tensors))
    return stretched(ModelConfig.from_metadata(said), file, RopeChanges(**(changes or {})))  # pyright: ignore


def yarn_frequencies(width, base, factor, original, fast=32.0, slow=1.0, share=1.0):
    """YaRN's frequencies as its authors' program has them: a ramp over pairs between those that turn `fast` and `slow`
    times in the original context. Source: 2309.00071, section 3.2, and github.com/jquesnelle/yarn.
    """
    found = []
    ends = [width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (fast, slow)]
    low, high = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), width - 1)
    for pair in range(width // 2):
        plain = base ** (-2 * pair / width)
        ramp = min(1.0, max(0.0, (pair - low) / (high - low if high > low else 0.001)))
        kept = share * (1 - ramp)
        found.append(plain * kept + plain / factor * (1 - kept))
    return np.array(found)


@pytest.mark.parametrize("factor", [2.0, 4.0, 7.5])
@pytest.mark.parametrize("extra", [{}, {"yarn_beta_fast": 8, "yarn_beta_slow": 2}, {"yarn_ext_factor": 0.5}])
def test_yarn_is_the_papers(factor, extra):
    cfg = model(changes={"rope_scaling": "yarn", "rope_scale": factor, "yarn_orig_ctx": 4096, **extra})
    names = {"yarn_beta_fast": "fast", "yarn_beta_slow": "slow", "yarn_ext_factor": "share"}
    width, base = cfg.rope_dimension_count, cfg.rope_freq_base
    given = {names[name]: float(value) for name, value in extra.items()}
    expected = yarn_frequencies(width, base, factor, 4096, **given)
    np.testing.assert_allclose(inverse_frequencies(cfg), expected, rtol=1e-12)
    if not extra:  # the ends of the ramp, by the paper's own words
        plain = base ** (-2 * np.arange(width // 2) / width)
        turns = 4096 * plain / (2 * np.pi)
        np.testing.assert_allclose(expected[turns > 32], plain[turns > 32], rtol=1e-12)
        np.testing.assert_allclose(expected[turns < 1], plain[turns < 1] / factor, rtol=1e-12)
    sharper = 0.1 * math.log(factor) + 1
    assert magnitude(cfg.rope_scaling) == pytest.approx(sharper)
    positions = np.array([[0, 1, 63, 64, 1000]])
    cos, sin = rotation(cfg, jnp.asarray(positions, jnp.int32), None)
    angles = positions[..., None] * expected
    error = 1e-6 + angles * 2.0**-22  # float32's of frequency and angle
    assert (np.abs(cos - sharper * np.cos(angles)) <= sharper * error).all()
    assert (np.abs(sin - sharper * np.sin(angles)) <= sharper * error).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scale": 4},
        {"rope_scaling": "linear", "rope_scale": 4},
        {"rope_scaling": "linear", "rope_freq_scale": 0.25},
        {"rope_scaling": "yarn", "rope_scale": 4, "yarn_ext_factor": 0},
    ],
)
def test_linear_scaling_slows_all_pairs_alike(changes):
    """YaRN without its correction is linear, and is not sharper."""
    plain, cfg = model(), model(changes=changes)
    np.testing.assert_allclose(inverse_frequencies(cfg), inverse_frequencies(plain) / 4, rtol=1e-12)
    assert cfg.rope_scaling == RopeScaling("linear", 4.0)
    assert cfg.longest_context == 4 * plain.context_length


def test_the_rest_replaces_or_multiplies_what_the_file_says():
    said = {"rope__scaling__type": "yarn", "rope__scaling__factor": 8.0, "rope__scaling__attn_factor": 0.5}
    said["rope__scaling__original_context_length"] = 32
    file = model(**said)
    assert (file.rope_scaling, file.longest_context) == (
        RopeScaling("yarn", 8.0, 32, 0.5),
        max(file.context_length, 256),
    )
    assert model(changes={"rope_scaling": "none"}, **said).rope_scaling == RopeScaling(attn_factor=0.5)
    assert model(changes={"rope_scale": 2}, **said).rope_scaling == RopeScaling("yarn", 2.0, 32, 0.5)
    assert model(changes={"yarn_attn_factor": 0.5}, **said).rope_scaling == RopeScaling("yarn", 8.0, 32, 0.25)
    assert model(changes={"yarn_orig_ctx": 128}, **said).longest_context == 1024
    linear = model(changes={"rope_scaling": "linear"}, **said)
    assert (linear.rope_scaling.kind, linear.rope_scaling.factor) == ("linear", 8.0)
    twice = model(changes={"rope_scale": 8}, rope__scaling__factor=4.0)
    assert twice.longest_context == 2 * twice.context_length  # the file's length has its own factor in it


def test_a_larger_base_reaches_as_far_as_its_slowest_pair():
    """At the end of the longer context the slowest pair has turned as far as it did at the end of the trained one."""
    plain, cfg = model(), model(changes={"rope_freq_base": 8e6})
    assert cfg.rope_freq_base == 8e6
    assert cfg.longest_context > plain.context_length
    turned = [inverse_frequencies(each)[-1] * each.longest_context for each in (plain, cfg)]
    assert turned[0] == pytest.approx(turned[1], rel=1 / plain.context_length)
    assert model(changes={"rope_freq_base": 100}).longest_context == plain.context_length


def turned(cfg, layer):
    """Queries of one layer, rotated."""
    (mixer,) = cfg.layers[layer].mixers
    x = np.random.default_rng(0).normal(size=(1, 4, 1, cfg.key_length)).astype(np.float32)
    positions = jnp.asarray([[1, 7, 40, 300]], jnp.int32)
    return np.asarray(Turns(cfg, positions, None).rotate(jnp.asarray(x), mixer.window > 0))


@pytest.mark.parametrize("keys", [{}, {"rope__scaling__type": "linear", "rope__scaling__factor": 2.0}])
@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gpt-oss"])
@pytest.mark.parametrize("changes", [{**YARN, "rope_scale": 8}, {"rope_freq_base": 8e6}, {"rope_scale": 8}])
def test_layers_with_a_window_turn_as_the_file_says(name, keys, changes):
    """Source: llama.cpp's `get_rope_freq_base` and `get_rope_freq_scale`."""
    before, after = model(name, **keys), model(name, changes, **keys)
    slides, sees_all = before.slides.index(True), before.slides.index(False)
    np.testing.assert_array_equal(turned(before, slides), turned(after, slides))
    assert np.abs(turned(before, sees_all) - turned(after, sees_all)).max() > 0.1
    assert in_words(after).endswith("; sliding layers as in the file")


SAID = {f"llama.rope.scaling.{key}": value for key, value in (("type", "yarn"), ("factor", 4.0))}
SAID["llama.rope.scaling.original_context_length"] = CONTEXT


def test_arguments_and_a_file_that_says_the_same_give_the_same_bits(tmp_path):
    """And the same executables, out of the store; a file without them reads other numbers beyond the trained length."""
    shape = {"layers": 1, "embed": 32, "vocab": 270, "context": CONTEXT}
    plain, says = (
        write_llama(tmp_path / "plain.gguf", **shape),
        write_llama(tmp_path / "says.gguf", **shape, extra=SAID),
    )
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in SMALL.items() if key != "context"}
    config = packlight.CompileConfig(**settings, cpu_kernels="xla", cache_dir=str(tmp_path))
    ids = np.random.default_rng(0).integers(3, 260, 2 * CONTEXT).tolist()
    found = []
    for path, given in ((says, {}), (plain, {**YARN, "yarn_orig_ctx": CONTEXT}), (plain, {"rope_scale": 2})):
        with packlight.load(path, config, context=2 * CONTEXT, **given) as llm:
            found.append((llm.logits(ids), llm.executables.misses, llm.model))
    (first, misses, file), (second, again, asked), (other, anew, _) = found
    np.testing.assert_array_equal(first, second)
    assert misses == anew > again == 0
    assert file.rope_scaling == asked.rope_scaling
    assert file.longest_context == asked.longest_context == 4 * CONTEXT
    assert (file.rope_given, asked.rope_given) == ((), (*YARN, "yarn_orig_ctx"))
    assert np.abs(first - other).max() > 1e-2 * first.std()


def test_a_longer_context_needs_what_stretches_it(tmp_path):
    path = write_llama(tmp_path / "m.gguf", layers=1, embed=32, vocab=270, context=CONTEXT)
    stretch = "the model has only 64; rope_scaling=yarn and rope_scale=3 would stretch it"
    with pytest.raises(ConfigError, match=f"context=129: {stretch}"):
        prepare(path, context=129)
    with pytest.raises(ConfigError, match=f"config key 'context' is 129; {stretch}"):
        prepare(path, packlight.CompileConfig(context=129))
    assert prepare(path, context=129, rope_scaling="yarn", rope_scale=3).context == 129
    assert prepare(path, **YARN).context == CONTEXT  # more is to be asked for
    with pytest.raises(ConfigError, match="context=257: the model has only 256$"):
        prepare(path, context=257, **YARN)
    says = write_llama(tmp_path / "says.gguf", layers=1, embed=32, vocab=270, context=CONTEXT, extra=SAID)
    assert prepare(says, context=256).context == 256
    assert too_long(model("gpt2"), 10**6) == (f"the model has only {model('gpt2').context_length}",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": "ntk"}, "rope_scaling=ntk: it is one of none, linear, yarn"),
        ({"rope_scaling": 1}, "rope_scaling=1: it is one of"),
        ({"rope_scale": 0}, "rope_scale=0: it is a number from 0.001 to 100000"),
        ({"rope_scale": -2.0}, "rope_scale=-2.0: it is a number"),
        ({"rope_scale": math.nan}, "rope_scale=nan: it is a number"),
        ({"rope_scale": math.inf}, "rope_scale=inf: it is a number"),
        ({"rope_scale": 1e300}, "rope_scale=1e.300: it is a number"),
        ({"rope_scale": True}, "rope_scale=True: it is a number"),
        ({"rope_scale": "4"}, "rope_scale=4: it is a number"),
        ({"rope_freq_scale": 0}, "rope_freq_scale=0: it is a number from 1e-05 to 1000"),
        ({"rope_freq_base": 1}, "rope_freq_base=1: it is a number from 1.001 to"),
        ({"yarn_orig_ctx": 0}, "yarn_orig_ctx=0: it is an integer from 1 to"),
        ({"yarn_orig_ctx": 64.0}, "yarn_orig_ctx=64.0: it is an integer"),
        ({"yarn_ext_factor": -1}, "yarn_ext_factor=-1: it is a number from 0 to 1"),
        ({"rope_scale": 4, "rope_freq_scale": 0.25}, "rope_scale=4 or rope_freq_scale=0.25, not both"),
        ({"rope_scaling": "none", "rope_scale": 4}, "rope_scale=4: nothing is scaled with rope_scaling=none"),
    ],
)
def test_values_that_suit_no_model_are_refused(changes, words):
    with pytest.raises(ConfigError, match=f"^{words}"):
        RopeChanges(**changes)


LINEAR = {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}


@pytest.mark.parametrize(
    ("name", "changes", "keys", "words"),
    [
        (
            "qwen2",
            {"rope_scaling": "linear"},
            {},
            "rope_scaling=linear: a factor of 1 stretches nothing; give rope_scale=N",
        ),
        ("qwen2", {"rope_scaling": "yarn", "rope_scale": 1}, {}, "rope_scale=1: a factor of 1 stretches nothing"),
        ("qwen2", {"rope_scaling": "yarn", "rope_scale": 0.5}, {}, "rope_scale=0.5: YaRN stretches, by more than 1"),
        ("qwen2", {"rope_scaling": "none"}, {}, "rope_scaling=none: nothing changes, as the file says so already"),
        ("qwen2", {"rope_scale": 4}, LINEAR, "rope_scale=4: nothing changes"),
        ("qwen2", {"rope_scale": 4, "yarn_beta_fast": 8}, {}, "yarn_beta_fast=8: the scaling is linear; .*=yarn"),
        ("qwen2", {"rope_scaling": "none", "yarn_attn_factor": 2}, LINEAR, "yarn_attn_factor=2: the scaling is none"),
        ("qwen2", {**YARN, "yarn_beta_slow": 40}, {}, "rope_scale=4: beta_fast 32 is not above beta_slow 40"),
        (
            "qwen2",
            {**YARN, "yarn_ext_factor": 0, "yarn_orig_ctx": 64},
            {},
            "yarn_orig_ctx=64: nothing is left of it with yarn_ext_factor=0",
        ),
        ("gpt2", {"rope_scale": 4}, {}, "rope_scale=4: no layer of the model that sees all of a text rotates"),
        ("cohere2", YARN, {}, "rope_scaling=yarn: no layer of the model that sees all of a text rotates"),
        (
            "deepseek2",
            {"rope_scale": 4, "rope_scaling": "linear"},
            {},
            "rope_scale=4: latent attention .* by YaRN only",
        ),
    ],
)
def test_what_a_model_cannot_do_is_refused(name, changes, keys, words):
    with pytest.raises(ConfigError, match=f"^{words}"):
        model(name, changes, **keys)


def test_long_rope_is_not_replaced():
    with pytest.raises(ConfigError, match=r"rope_scale=2: .* numbers of its own \('rope_factors_long', long-rope\)"):
        model("phi3-longrope", {"rope_scale": 2}, ("rope_factors_long.weight",))


def test_the_tables_agree():
    fields = RopeChanges.__dataclass_fields__
    assert list(ROPE) == list(fields) == list(Rope.__annotations__)
    assert RopeChanges().given == ()
