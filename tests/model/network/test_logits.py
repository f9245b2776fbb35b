"""Logits: against llama.cpp's goldens on every llama-architecture file, and against float64 on shapes of our own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import GOLDENS
from ggufs import write_llama
from golden_models import OWN, PACKED, gelu_table, golden, shared
from jax.experimental import io_callback
from oracle import Oracle
from steps import load

import packlight
from packlight.model.gguf.reader import open_gguf
from packlight.model.network.ffn import moe
from packlight.model.spec.config import ModelConfig
from packlight.quant.kernels import native_ops
from packlight.quant.kernels.native_ops import QTYPES
from packlight.quant.matmul import matmul


@pytest.mark.parametrize("name", [*OWN, *shared(GOLDENS)])
def test_logits_and_greedy_ids_equal_llama_cpp(name, tmp_path, monkeypatch, record):
    """DESIGN, Numerics: within 1e-3 of the logits' deviation; greedy ids equal, read off one teacher-forced pass. Of
    ours embeddings too: each number of a last state or a mean is a sum as a logit is, and bounded as one.
    """
    told = golden(name, tmp_path)
    if told.rounded_gelu:
        gelu_table(monkeypatch)
    model = load(told.path)
    hidden = model.prefill(model.empty_cache(), told.ids + told.greedy[:-1], rows=64 if told.own else 128)[1]
    logits = model.logits(hidden)
    error = np.abs(told.picked(logits) - told.logits).max() / told.logits.std()
    assert error <= 1e-3
    assert logits[len(told.ids) - 1 :].argmax(-1).tolist() == told.greedy
    for pooling, expected in told.embeddings.items():
        states = np.asarray(hidden)[: len(told.ids)]
        ours = states.mean(0) if pooling == "mean" else states[-1]
        assert np.abs(ours - expected).max() <= 1e-3 * expected.std(), pooling
    record(name, **facts(told.path), error=float(error), greedy=len(told.greedy))


def facts(path):
    """Architecture and formats of a file, as the README's table shows them."""
    report = packlight.inspect(path)
    formats = [name for name in report["formats"] if name != "F32"] or ["F32"]
    return {"architecture": report["architecture"], "formats": formats}


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


# Compared with the twin: it takes 5 s to compile each.
TWINS = [name for name in GOLDENS if "llama-" in name or name.endswith(("gpt-oss", "qwen3moe", "Q8_0", "Q4_K_M"))]
OWN_TWINS = [name for name in PACKED if "llama-" in name or name.endswith("gpt-oss")]


def rounding(product, ties):
    """A matrix product that first rounds activations as the native kernels do, and adds to `ties` how near they came
    to half a step."""

    def rounded(x, w, *args):
        block = native_ops.activation_block(w.qtype) if w.qtype in QTYPES else 1
        if block == 1:
            return product(x, w, *args)
        if block == native_ops.PAIRS:  # bfloat16 has the upper 16 of 32 bits
            steps = (jax.lax.bitcast_convert_type(x, jnp.uint32) & 0xFFFF).astype(jnp.float32) / 65536
        else:
            runs = x.reshape(x.shape[0], -1, block)
            steps = runs * 127 / jnp.maximum(jnp.abs(runs).max(-1, keepdims=True), 1e-30)
        jax.debug.callback(ties.append, jnp.abs(steps - jnp.floor(steps) - 0.5).min())
        return product(native_ops.round_activations(x, block), w, *args)

    return rounded


def rms(a, b):
    return np.sqrt(np.mean((a - b) ** 2))


def by_position(logits, exact):
    """What one or two positions, at which llama.cpp's own rounding chose other experts, do not move."""
    return np.median(np.sqrt(np.mean((logits - exact) ** 2, axis=-1)))


def noting(route, found):
    """`route`, which adds the experts that each layer chooses to `found`."""

    def noted(*args):
        experts, weights = route(*args)
        jax.debug.callback(found.append, experts, ordered=True)
        return experts, weights

    return noted


def following(route, chosen):
    """`route`, in which the rows of each layer choose the experts that are next in `chosen`."""
    left = iter(chosen)

    def followed(router, used, routing, bias=None, native=False):
        shape = jax.ShapeDtypeStruct((router.shape[0], used), jnp.int32)
        experts = io_callback(lambda: np.asarray(next(left)), shape, ordered=True)
        lead = jax.nn.one_hot(experts, router.shape[1], dtype=jnp.float32).sum(1) * jnp.float32(1e6)
        lead = lead if bias is None else lead + bias[None, :]
        one = jax.vmap(lambda row, lead: route(row[None, :], used, routing, lead))(router, lead)
        return one[0][:, 0], one[1][:, 0]

    return followed


def native_with_exact_choices(path, ids, monkeypatch):
    """Logits of the native kernels, when routers choose as they do without rounding."""
    chosen, route = [], moe.route
    monkeypatch.setattr(moe, "route", noting(route, chosen))
    load(path, cpu_kernels="xla").all_logits(ids)
    jax.effects_barrier()
    monkeypatch.setattr(moe, "route", following(route, chosen))
    return load(path, cpu_kernels="native").all_logits(ids)


@pytest.mark.parametrize("name", [*PACKED, *shared(GOLDENS)])
def test_native_kernels_stay_as_close_as_llama_cpp(name, tmp_path, monkeypatch, record):
    """DESIGN, Numerics: RMS from `logits_f32` <= 1.5 times llama.cpp's own, which rounds activations to int8 too.

    Where two experts are nearly as good, rounding may choose the other one, which moves logits by far more. It does so
    at other positions than llama.cpp's, so that if the bound fails it is asked of the exact choices.
    """
    told = golden(name, tmp_path)
    assert told.packed_logits is not None
    exact = told.stock_logits
    logits = told.picked(load(told.path, cpu_kernels="native").all_logits(told.ids))
    theirs = rms(told.packed_logits, exact)
    if theirs == 0:  # nothing is rounded: the rule for float32
        assert np.abs(logits - exact).max() <= 1e-3 * exact.std()
        return
    ratio = rms(logits, exact) / theirs
    if ratio > 1.5 and ModelConfig.from_gguf(open_gguf(told.path)).expert_count:
        logits = told.picked(native_with_exact_choices(told.path, told.ids, monkeypatch))
        ratio = by_position(logits, exact) / by_position(told.packed_logits, exact)
    assert 0 < ratio <= 1.5
    record(name, rounding=float(ratio))


@pytest.mark.parametrize("name", [*OWN_TWINS, *shared(TWINS)])
def test_native_kernels_equal_their_twin(name, tmp_path, monkeypatch):
    """Within 1e-3 of the deviation of the reference path with activations rounded in jnp, but for near ties."""
    told = golden(name, tmp_path)
    path, ids, exact = told.path, told.ids, told.stock_logits
    logits = load(path, cpu_kernels="native").all_logits(ids)
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
        assert rms(told.picked(logits), exact) <= 1.5 * rms(told.picked(twin), exact)


def test_native_kernels_run_the_layers_of_a_stack(tmp_path):
    """The loop over layers hands the kernel whole stacks: against the same rounding done once in float64, no golden."""
    mix = {"default": "Q4_K", "blk.1.attn_v": "Q6_K", "ffn_down": "Q8_0", "attn_k": "IQ3_S"}
    path = write_llama(tmp_path / "model.gguf", layers=3, embed=256, formats=mix)
    ids = list(range(3, 30))
    exact, native = (load(path, cpu_kernels=kernels).all_logits(ids) for kernels in ("xla", "native"))
    # int8 rounds by half of absmax / 127, about 1 % of a normal deviation, in each of some 20 products.
    rms = np.sqrt(np.mean((exact - native) ** 2)) / exact.std()
    assert 1e-4 < rms <= 0.01 * np.sqrt(20)
