"""Logits: against llama.cpp's goldens on every llama-architecture file, and against float64 on shapes of our own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import variant_goldens
from conftest import GOLDENS_FOLDER, shared_path
from families import GOLDENS
from ggufs import write_llama
from oracle import Oracle
from steps import load

import packlight
from packlight.quant.formats.table import format_named
from packlight.quant.kernels import native_ops
from packlight.quant.kernels.native_ops import QTYPES
from packlight.quant.matmul import matmul


@pytest.mark.parametrize("name", GOLDENS)
def test_logits_and_greedy_ids_equal_llama_cpp(name, record):
    """DESIGN, Numerics: within 1e-3 of the logits' deviation; greedy ids equal, read off one teacher-forced pass."""
    folder, stem = name.split("/")
    golden = np.load(shared_path(folder, f"{stem}.npz"))
    exact = "_gelu32" if "logits_f32_gelu32" in golden else ""  # without ggml's GELU table in float16
    ids, greedy = golden["ids"].tolist(), golden[f"greedy_ids_f32{exact}"].tolist()
    model = load(shared_path(folder, f"{stem}.gguf"))
    logits = model.all_logits(ids + greedy[:-1], rows=128)
    expected = golden[f"logits_f32{exact}"]
    error = np.abs(logits[: len(ids)] - expected).max() / expected.std()
    assert error <= 1e-3
    assert logits[len(ids) - 1 :].argmax(-1).tolist() == greedy
    record(name, **facts(shared_path(folder, f"{stem}.gguf")), error=float(error), greedy=len(greedy))


def facts(path):
    """Architecture and formats of a file, as the README's table shows them."""
    report = packlight.inspect(path)
    formats = [name for name in report["formats"] if name != "F32"] or ["F32"]
    return {"architecture": report["architecture"], "formats": formats}


@pytest.mark.parametrize("name", [*variant_goldens.MODELS, *variant_goldens.REVISED])
def test_variants_equal_llama_cpp(tmp_path, name, record):
    """Goldens of our own making where none are given: see `variant_goldens`."""
    golden = np.load(GOLDENS_FOLDER / "variant_goldens.npz")
    if name in variant_goldens.MODELS:
        write_llama(tmp_path / "model.gguf", **variant_goldens.MODELS[name])
    else:
        variant_goldens.revise(
            name, shared_path("arch", f"{variant_goldens.REVISED[name][0]}.gguf"), tmp_path / "model.gguf"
        )
    model = load(tmp_path / "model.gguf")
    expected, greedy = golden[f"{name}.logits"], golden[f"{name}.greedy"].tolist()
    ids = variant_goldens.ids()
    logits = model.all_logits(ids + greedy[:-1], rows=128)
    error = np.abs(logits[: len(ids)] - expected).max() / expected.std()
    assert error <= 1e-3
    assert logits[len(ids) - 1 :].argmax(-1).tolist() == greedy
    record(f"own/{name}", **facts(tmp_path / "model.gguf"), error=float(error), greedy=len(greedy))


@pytest.mark.parametrize("key", ["attention.temperature_scale", "rope.scaling.yarn_log_multiplier"])
def test_the_golden_of_ministral_notices_its_keys(tmp_path, key):
    options = variant_goldens.MODELS["ministral3"]
    other = options | {"extra": options["extra"] | {f"llama.{key}": 0.0}}
    expected = np.load(GOLDENS_FOLDER / "variant_goldens.npz")["ministral3.logits"]
    logits = load(write_llama(tmp_path / "model.gguf", **other)).all_logits(variant_goldens.ids())
    assert np.abs(logits - expected).max() > 1e-2 * expected.std()


VARIANTS = {
    "grouped": {"heads": 4, "kv_heads": 2},
    "multi-query": {"heads": 4, "kv_heads": 1},
    "tied": {"tied": True, "formats": {"token_embd": "Q4_K"}, "embed": 256},
    "biases": {"biases": True},
    "wide heads": {"heads": 2, "kv_heads": 2, "head_dim": 64},
    "linear scaling": {"extra": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}},
    "another base": {"rope_base": 500000.0},
    "large epsilon": {"extra": {"llama.attention.layer_norm_rms_epsilon": 0.5}},
    "formats that differ by layer": {"layers": 3, "embed": 256, "formats": {"blk.1.attn_v": "Q6_K", "ffn_up": "Q4_K"}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_float64(tmp_path, variant):
    path = write_llama(tmp_path / "model.gguf", **VARIANTS[variant])
    ids = np.random.default_rng(0).integers(3, 300, 24).tolist()
    expected = Oracle(path).logits(ids)
    logits = load(path).all_logits(ids)
    # Two layers of float32 sums of some hundred terms round by about 1e-6 relative; a wrong formula is off by 1e-2.
    assert np.abs(logits - expected).max() <= 1e-4 * expected.std()


def test_the_oracle_notices_each_variant(tmp_path):
    """What the variants change is visible in the logits, so that reading none of it could not pass."""
    base = Oracle(write_llama(tmp_path / "base.gguf")).logits([5, 6, 7, 8])
    for name in ("linear scaling", "another base", "large epsilon", "biases"):
        other = Oracle(write_llama(tmp_path / f"{len(name)}.gguf", **VARIANTS[name])).logits([5, 6, 7, 8])
        assert np.abs(other - base).max() > 1e-2 * base.std(), name


def test_reference_and_xla_paths_agree(tmp_path):
    path = write_llama(tmp_path / "model.gguf", embed=256, formats={"default": "Q4_K", "attn_v": "Q6_K"})
    ids = list(range(3, 30))
    a, b = (load(path, cpu_kernels=kernels).all_logits(ids) for kernels in ("reference", "xla"))
    assert np.abs(a - b).max() <= 1e-4 * a.std()  # DESIGN, Invariance: two executables


def test_bfloat16_activations_stay_within_their_rounding(tmp_path):
    """Every product rounds x and w to 8 bits: 2^-8 relative per term at random signs, through about 14 products."""
    path = write_llama(tmp_path / "model.gguf")
    ids = list(range(3, 30))
    exact = load(path).all_logits(ids)
    rounded = load(path, activation_dtype="bfloat16").all_logits(ids)
    rms = np.sqrt(np.mean((exact - rounded) ** 2)) / exact.std()
    assert 1e-5 < rms <= 2**-8 * np.sqrt(14)


# Between two ways of summing, an activation moves by up to 1e-5 of its block's maximum (TWIN in test_native.py), so one
# that lies nearer to half a step than this many steps may be rounded up in one and down in the other. Steps are 2 % of
# a deviation, so one such flip moves what follows by far more than float32 does, and that flips more.
NEAR_TIE = 127 * 1e-5


# Compared with the twin too: it takes 5 s to compile each.
TWINS = [name for name in GOLDENS if "llama-" in name or name.endswith(("gpt-oss", "qwen3moe", "Q8_0", "Q4_K_M"))]


def rounding(product, ties):
    """A matrix product that first rounds activations as the native kernels do, and adds to `ties` how near they came
    to half a step."""

    def rounded(x, w, *args):
        if w.qtype not in QTYPES:
            return product(x, w, *args)
        runs = x.reshape(x.shape[0], -1, format_named(w.qtype).elements)
        steps = runs * 127 / jnp.maximum(jnp.abs(runs).max(-1, keepdims=True), 1e-30)
        jax.debug.callback(ties.append, jnp.abs(steps - jnp.floor(steps) - 0.5).min())
        return product(native_ops.round_activations(x, runs.shape[-1]), w, *args)

    return rounded


@pytest.mark.parametrize("name", GOLDENS)
def test_native_kernels_stay_as_close_as_llama_cpp(name, monkeypatch, record):
    """DESIGN, Numerics: RMS from `logits_f32` <= 1.5 times llama.cpp's own, which rounds activations to int8 too; and,
    for some files, within 1e-3 of the deviation of the reference path with that rounding in jnp, but for near ties.
    """
    folder, stem = name.split("/")
    golden = np.load(shared_path(folder, f"{stem}.npz"))
    path, ids = shared_path(folder, f"{stem}.gguf"), golden["ids"].tolist()
    exact = golden["logits_f32"]

    def rms(logits):
        return np.sqrt(np.mean((logits - exact) ** 2))

    logits = load(path, cpu_kernels="native").all_logits(ids)
    if rms(golden["logits"]) == 0:  # nothing is rounded: the rule for float32
        assert np.abs(logits - exact).max() <= 1e-3 * exact.std()
    else:
        assert 0 < rms(logits) <= 1.5 * rms(golden["logits"])
        record(name, rounding=float(rms(logits) / rms(golden["logits"])))

    if name not in TWINS:
        return
    ties = []
    one = rounding(matmul, ties)
    monkeypatch.setattr("packlight.model.network.forward.matmul", one)
    monkeypatch.setattr(
        "packlight.model.weights.stack.matmul_many",
        lambda x, ws, path, at: [one(x, w, path, i) for w, i in zip(ws, at, strict=True)],
    )
    twin = load(path, cpu_kernels="reference").all_logits(ids)
    jax.effects_barrier()
    if np.abs(logits - twin).max() > 1e-3 * twin.std():
        assert min(ties) < NEAR_TIE
        print(f"{name}: an activation {min(ties):.1e} steps from a tie is rounded the other way")
        assert rms(logits) <= 1.5 * rms(twin)


def test_native_kernels_run_the_layers_of_a_stack(tmp_path):
    """The loop over layers hands the kernel whole stacks: against the same rounding done once in float64, no golden."""
    mix = {"default": "Q4_K", "blk.1.attn_v": "Q6_K", "ffn_down": "Q8_0", "attn_k": "IQ3_S"}
    path = write_llama(tmp_path / "model.gguf", layers=3, embed=256, formats=mix)
    ids = list(range(3, 30))
    exact, native = (load(path, cpu_kernels=kernels).all_logits(ids) for kernels in ("xla", "native"))
    # int8 rounds by half of absmax / 127, about 1 % of a normal deviation, in each of some 20 products.
    rms = np.sqrt(np.mean((exact - native) ** 2)) / exact.std()
    assert 1e-4 < rms <= 0.01 * np.sqrt(20)
