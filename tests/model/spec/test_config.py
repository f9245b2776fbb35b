"""`ModelConfig`: a file's hyperparameters are all read, checked and have an effect; none is dropped unseen (R14)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ggufs import write_llama

from packlight.common.errors import GGUFError, PacklightError, UnsupportedError
from packlight.compile.kernels import product_paths
from packlight.model.gguf.reader import open_gguf
from packlight.model.network.forward import layers
from packlight.model.network.rope import inverse_frequencies, magnitude
from packlight.model.network.state import Numerics, Rows
from packlight.model.network.step import Step
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.parts.attention import KV
from packlight.model.spec.positions import RopeScaling
from packlight.model.spec.weights import declare
from packlight.model.weights.load import read_weights
from packlight.model.weights.params import place
from packlight.model.weights.placement import Placement

SCALED = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
EXPERTS = {"expert_count": 4, "expert_used_count": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Metadata of a sound file: 2 layers, 64 wide, 4 heads of 16, 2 kv heads, 128 of context, 320 tokens."""
    path = write_llama(tmp_path_factory.mktemp("config") / "m.gguf")
    return dict(open_gguf(path).metadata)


def config(base, *without, **changes):
    """The config with changed llama.* keys, dots written as __, and without the keys named."""
    full = base | {f"llama.{key.replace('__', '.')}": value for key, value in changes.items()}
    return ModelConfig.from_metadata({k: v for k, v in full.items() if k.removeprefix("llama.") not in without})


def defaulted(cfg):
    return {key.removeprefix("llama."): value for key, value in cfg.defaulted}


# Absent keys


MANDATORY = ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"]
MANDATORY += ["attention.layer_norm_rms_epsilon", "general.architecture", "tokenizer.ggml.tokens"]


@pytest.mark.parametrize("key", MANDATORY)
def test_missing_mandatory_key_is_named(base, key):
    with pytest.raises(GGUFError, match=f"key '(llama.)?{key}'.*is missing"):
        config(base, key)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaling_needs_its_factor(base, kind):
    with pytest.raises(GGUFError, match=r"mandatory key 'llama\.rope\.scaling\.factor' is missing"):
        config(base, rope__scaling__type=kind)


def test_experts_need_their_number_used(base):
    with pytest.raises(GGUFError, match=r"mandatory key 'llama\.expert_used_count' is missing"):
        config(base, expert_count=4)


DEFAULTS = {
    "attention.head_count_kv": 4,
    "attention.key_length": 16,
    "attention.value_length": 16,
    "rope.dimension_count": 16,
    "rope.freq_base": 10000.0,
    "rope.scaling.type": "linear",
    "rope.scaling.factor": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "nextn_predict_layers": 0,
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
}


@pytest.mark.parametrize("key", DEFAULTS)
def test_default_is_recorded(base, key):
    assert defaulted(config(base, key))[key] == DEFAULTS[key]


def test_defaults_are_all_recorded(base):
    """Without any optional key the record is exactly the table; llama.cpp's values, source: `llama_hparams`."""
    cfg = config(base, *DEFAULTS)
    assert defaulted(cfg) == DEFAULTS
    assert (cfg.head_count_kv, cfg.key_length, cfg.rope_scaling) == (4, 16, RopeScaling())
    full = config(base, **(SCALED | EXPERTS), rope__scaling__attn_factor=1.0)
    always = {
        "moe_latent_size": 0,
        "nextn_predict_layers": 0,
        "attention.causal": True,
        "expert_feed_forward_length": base["llama.feed_forward_length"],
    }
    always["expert_shared_feed_forward_length"] = 0
    assert defaulted(full) == {**always, "rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0}
    unscaled = config(base, **EXPERTS, rope__scaling__type="none")
    assert defaulted(unscaled) == {**always, "rope.scaling.attn_factor": 1.0}


def test_every_key_of_the_file_matters(base):
    """Removing any key of the architecture raises naming it or is recorded as a default; vocab_size only agrees."""
    keys = [key.removeprefix("llama.") for key in base if key.startswith("llama.")]
    assert len(keys) > 10
    for key in set(keys) - {"vocab_size"}:
        try:
            recorded = key in defaulted(config(base, key))
        except GGUFError as error:
            recorded = f"'llama.{key}' is missing" in str(error)
        assert recorded, key


def test_unread_keys_are_reported(base):
    assert config(base).unread == ()
    extra = {"attention.sliding_window": 7, "rope.scaling.yarn_ext_factor": 1.0}
    assert config(base, **extra).unread == tuple(f"llama.{key}" for key in extra)
    assert config(base, rope__scaling__type="none", rope__scaling__factor=2.0).unread == ("llama.rope.scaling.factor",)


# Values have an effect


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"block_count": 3}, "block_count", 3),
        ({"context_length": 99}, "context_length", 99),
        ({"feed_forward_length": 160}, "feed_forward_length", 160),
        ({"attention.head_count": 8}, "head_count", 8),
        ({"attention.head_count_kv": 1}, "head_count_kv", 1),
        ({"attention.layer_norm_rms_epsilon": 2.5e-6}, "norm_epsilon", 2.5e-6),
        ({"rope.freq_base": 500000.0}, "rope_freq_base", 500000.0),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, "rope_scaling", RopeScaling("linear", 4.0)),
        ({"rope.scaling.factor": 4.0}, "rope_scaling", RopeScaling("linear", 4.0)),
        ({"rope.scale_linear": 2.0}, "rope_scaling", RopeScaling("linear", 2.0)),
        ({"rope.scale_linear": 2.0, "rope.scaling.factor": 8.0}, "rope_scaling", RopeScaling("linear", 8.0)),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, "rope_scaling", RopeScaling()),
        ({"rope.scaling.attn_factor": 0.5}, "rope_scaling", RopeScaling(attn_factor=0.5)),
        (SCALED, "rope_scaling", RopeScaling("yarn", 4.0, 64)),
        (
            SCALED | {"rope.scaling.yarn_beta_fast": 16.0, "rope.scaling.yarn_beta_slow": 2.0},
            "rope_scaling",
            RopeScaling("yarn", 4.0, 64, beta_fast=16.0, beta_slow=2.0),
        ),
        (EXPERTS, "expert_count", 4),
        (EXPERTS, "expert_used_count", 2),
    ],
)
def test_value_is_taken_from_the_file(base, changes, field, expected):
    assert getattr(config(base), field) != expected or field == "rope_scaling"
    assert getattr(config(base, **changes), field) == expected


def test_original_context_is_the_context_by_default(base):
    cfg = config(base, rope__scaling__type="yarn", rope__scaling__factor=4.0)
    assert cfg.rope_scaling.original_context == 128


def test_head_width_is_the_files(base):
    """48 wide heads in a model of 64 / 4 = 16: the shapes of the tensors follow."""
    wide = {"attention.key_length": 48, "attention.value_length": 48, "rope.dimension_count": 48}
    cfg = config(base, **wide)
    shapes = {weight.name: weight.shape for weight in declare(cfg)}
    assert cfg.key_length == cfg.rope_dimension_count == 48
    assert (shapes["attn_q"], shapes["attn_k"], shapes["attn_output"]) == ((192, 64), (96, 64), (64, 192))
    assert shapes["rope_freqs"] == (24,)


def test_rope_frequencies_follow_the_keys(base):
    pairs = np.arange(8)
    plain = inverse_frequencies(config(base))
    np.testing.assert_allclose(plain, 10000.0 ** (-pairs / 8), rtol=1e-12)
    np.testing.assert_allclose(inverse_frequencies(config(base, rope__freq_base=5e5)), 5e5 ** (-pairs / 8), rtol=1e-12)
    np.testing.assert_allclose(inverse_frequencies(config(base, rope__scaling__factor=4.0)), plain / 4, rtol=1e-12)
    yarn = inverse_frequencies(config(base, **SCALED))
    assert yarn[0] == plain[0]  # turns too often within 64 positions to be stretched
    assert yarn[-1] == plain[-1] / 4
    assert magnitude(config(base, rope__scaling__attn_factor=0.5).rope_scaling) == 0.5


def hidden(path, **changes):
    """Hidden states of three tokens, from the file's tensors read under changed keys."""
    file = open_gguf(path)
    cfg = config(dict(file.metadata), **changes)
    params = place(read_weights(file, cfg), Placement.on(jax.devices("cpu")))
    rows = Rows(jnp.int32(0), jnp.zeros(1, jnp.int32), jnp.full(1, 3, jnp.int32), jnp.ones(1, bool))
    empty = jnp.zeros((cfg.block_count, 1, cfg.head_count_kv, 128, cfg.key_length), jnp.float32)
    state = {"attention": KV(empty, empty)}
    x = jax.random.normal(jax.random.key(0), (1, 3, cfg.embedding_length), jnp.float32)

    def run(params, x):
        numerics = Numerics(product_paths("reference"), jnp.dtype("float32"), 128, 128)
        return layers(Step.of(cfg, numerics, params, rows, 3), params, x, state)[0]

    quick = {"xla_backend_optimization_level": 0}  # half the seconds of compilation, and five configs to compile
    return np.asarray(jax.jit(run, compiler_options=quick)(params, x))


def test_values_change_what_the_model_computes(tmp_path):
    """The same tensors under other keys; 2 heads of 16 and 4 of 8 need the same shapes."""
    path = write_llama(tmp_path / "m.gguf", layers=1, embed=32, vocab=270)
    regrouped = {"attention.head_count": 2, "attention.head_count_kv": 1}
    regrouped |= dict.fromkeys(("attention.key_length", "attention.value_length", "rope.dimension_count"), 16)
    plain = hidden(path)
    for changes in (
        {"attention.layer_norm_rms_epsilon": 0.1},
        {"rope.freq_base": 100.0},
        {"rope.scaling.factor": 4.0},
        regrouped,
    ):
        assert np.abs(hidden(path, **changes) - plain).max() > 1e-3, changes


# Bad values


INTEGERS = ["block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"]
INTEGERS += ["attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"]
INTEGERS += ["rope.dimension_count", "rope.scaling.original_context_length", "expert_count", "expert_used_count"]
NUMBERS = ["attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor", "rope.scaling.attn_factor"]
NUMBERS += ["rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"]
NO_INTEGERS = [
    "7",
    7.0,
    True,
    float("nan"),
    ["7"],
    np.array([], np.int32),
    np.ones(2),
    np.array([4, 4, 4]),
    np.ones(2, bool),
]
NO_NUMBERS = [
    "1",
    1,
    True,
    [],
    np.ones(1, np.float32),
    0.0,
    -1.0,
    1e30,
    1e-38,
    float("nan"),
    float("inf"),
    -float("inf"),
]


@pytest.mark.parametrize("key", INTEGERS)
def test_bad_integer_is_named(base, key):
    values = [*NO_INTEGERS, -1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
    values += [] if key.startswith("expert_count") else [0]
    for value in values:
        with pytest.raises(PacklightError, match=f"key 'llama.{key}'"):
            config(base, **(SCALED | EXPERTS | {key: value}))


@pytest.mark.parametrize("key", NUMBERS)
def test_bad_number_is_named(base, key):
    for value in NO_NUMBERS:
        with pytest.raises(GGUFError, match=f"key 'llama.{key}'"):
            config(base, **(SCALED | {key: value}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_count": 513}, "block_count': 513 is outside 1..512"),
        ({"attention.head_count": 65}, "head_count': 65 is outside 1..64"),
        ({"attention.head_count_kv": 3}, "head_count_kv': 3 does not divide 4 query heads"),
        ({"attention.head_count_kv": 8}, "head_count_kv': 8 is outside 1..4"),
        ({"attention.value_length": 8}, "value_length': 8 differs from 16"),
        ({"rope.dimension_count": 15}, "dimension_count': 15 is odd"),
        ({"rope.dimension_count": 8}, "dimension_count': 8 is not the head's width of 16"),
        ({"rope.dimension_count": 18}, "dimension_count': 18 is outside 1..16"),
        ({"rope.freq_base": 1.0}, "freq_base': 1.0 is outside"),
        ({"rope.scaling.type": "longrope"}, "scaling.type': unknown scaling 'longrope'; supported: none, linear, yarn"),
        ({"rope.scaling.type": 1}, "scaling.type': is an integer, a string is needed"),
        ({"vocab_size": 319}, "vocab_size': 319 differs from the 320 tokens"),
        ({"expert_count": 1025}, "expert_count': 1025 is outside"),
        ({"expert_used_count": 1}, "expert_used_count': 1 is outside 0..0"),
        (EXPERTS | {"expert_used_count": 5}, "expert_used_count': 5 is outside 1..4"),
    ],
)
def test_values_that_do_not_fit_each_other(base, changes, words):
    with pytest.raises(PacklightError, match=words):
        config(base, **changes)


def test_heads_that_do_not_divide_the_width(base):
    with pytest.raises(GGUFError, match=r"64 is not a multiple of 3 heads and 'attention\.key_length' is absent"):
        config(base, "attention.key_length", attention__head_count=3, attention__head_count_kv=1)


@pytest.mark.parametrize("key", ["attention.head_count", "attention.head_count_kv", "feed_forward_length"])
def test_numbers_per_layer(base, key):
    value = base[f"llama.{key}"]
    assert config(base, **{key: np.array([value, value], np.int32)}) == config(base)
    layers = config(base, **{key: np.array([value, value // 2], np.int32)}, attention__key_length=16).layers
    assert len(set(layers)) == 2
    with pytest.raises(GGUFError, match=f"{key}': has 1 elements for 2 layers"):
        config(base, **{key: np.array([value], np.int32)})


@pytest.mark.parametrize("name", ["", "gpt9", "../llama", "llama\0", "x" * 10**6, "new\nline\x1b[31m"])
def test_unknown_architecture(base, name):
    with pytest.raises(
        UnsupportedError,
        match=r"'general\.architecture': unknown architecture .*; \d+ are supported \(docs/models\.md\); ",
    ) as e:
        ModelConfig.from_metadata(base | {"general.architecture": name})
    assert str(e.value).isprintable()
    assert len(str(e.value)) < 300


@pytest.mark.parametrize("name", [None, 3, ["llama"], np.array([1])])
def test_architecture_that_is_no_string(base, name):
    with pytest.raises(GGUFError, match=r"key 'general\.architecture' is missing or no string"):
        ModelConfig.from_metadata(base | {"general.architecture": name})


def test_name_is_decoration(base):
    assert config(base).name == "test"
    for name in (3, ["a"], np.arange(3)):
        assert ModelConfig.from_metadata(base | {"general.name": name}).name == ""


def test_error_names_the_file_once(tmp_path):
    path = write_llama(tmp_path / "new\nline.gguf", omit=["llama.block_count"])
    with pytest.raises(GGUFError) as e:
        ModelConfig.from_gguf(open_gguf(path))
    assert str(e.value) == f"{tmp_path}/new\\nline.gguf: mandatory key 'llama.block_count' is missing"
