"""The contract of a mixer, for every kind: what may change its results and its state, and what may not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import metadata
from packed import random_weights

from packlight.compile.kernels import product_paths
from packlight.model.network.forward import MIXERS
from packlight.model.network.mixers import convolution
from packlight.model.network.state import Numerics, Rows
from packlight.model.network.step import Step
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.parts.attention import AttentionPart, Source
from packlight.model.spec.parts.deltanet import DeltaNetPart
from packlight.model.spec.parts.mamba2 import Mamba2Part
from packlight.model.spec.parts.mla import MlaPart
from packlight.model.spec.parts.shortconv import ShortConvPart
from packlight.model.spec.state import Room
from packlight.model.weights.stack import Stack

LAYERS, LAYER = 3, 1  # of the mixer; the one that runs
SLOTS, CAPACITY, CHUNK = 4, 384, 24
T = 300  # tokens of a text: a window of 20 has gone round its 128 places twice
CASES: dict = {
    "attention": [AttentionPart(4, 2, 64)],
    "one kv head": [AttentionPart(4, 1, 64)],
    "window": [AttentionPart(4, 2, 64, 20)],
    "keys as values": [AttentionPart(4, 2, 64)],
    "shared": [AttentionPart(4, 2, 64), AttentionPart(8, 2, 64, reads=Source("attention", LAYER))],
    "shared window": [AttentionPart(4, 1, 64, 20), AttentionPart(4, 1, 64, 20, reads=Source("attention", LAYER))],
    "mla": [MlaPart(4, 64, 32, 16, 48, 24)],
    "mla, expanded": [MlaPart(4, 0, 256, 32, 64, 8, split=False)],
    "deltanet": [DeltaNetPart(4, 2, 32, 4)],
    "deltanet, consecutive": [DeltaNetPart(6, 2, 32, 3, consecutive=True)],
    "mamba2": [Mamba2Part(8, 1, 32, 16, 4)],
    "mamba2, groups": [Mamba2Part(6, 2, 32, 48, 3)],
    "shortconv": [ShortConvPart(3)],
    "many taps": [ShortConvPart(9)],
}
FAMILIES = {"keys as values": "gemma4", "shared": "gemma4", "shared window": "gemma4"}  # a recipe; else llama's


@dataclasses.dataclass(frozen=True)
class Case:
    """One mixer with weights, and its step. Behind it may be one that reads its state, and then gives the result."""

    mixers: list[AttentionPart | DeltaNetPart | Mamba2Part | MlaPart | ShortConvPart]
    cfg: ModelConfig
    weights: list[dict]  # of each

    @property
    def mixer(self):
        return self.mixers[0]

    def mix(self, step, weights, index, state, h):
        y = h
        for mixer, own in zip(self.mixers, weights, strict=True):
            y, state = MIXERS[type(mixer)](step, mixer, own, index, state, h)
        return y, state

    @property
    def room(self) -> Room:
        return Room(SLOTS, CAPACITY, CHUNK, "float32")

    def state(self, fill=0.0):
        buffers = self.mixer.state(self.cfg, LAYERS, self.room)
        return jax.tree.map(lambda b: jnp.full(b.shape, fill, jnp.dtype(b.dtype)), buffers)

    @functools.cached_property
    def step(self):
        """Jitted: (weights, state, h (B, T, D), rows) -> (y, state)."""

        def run(weights, state, h, rows):
            numerics = Numerics(product_paths("reference"), jnp.dtype("float32"), CAPACITY, CAPACITY)
            step = Step.of(self.cfg, numerics, {}, rows, h.shape[1])
            return self.mix(step, weights, jnp.int32(LAYER), state, h)

        return jax.jit(run)

    def run(self, state, h, slot, start, active=True, real=None):
        """The tokens h (B, T, D) of consecutive slots from position `start` on; the first `real` of them are no
        padding."""
        count = h.shape[0]
        starts = jnp.broadcast_to(jnp.int32(start), (count,))
        ends = starts + (h.shape[1] if real is None else real)
        rows = Rows(jnp.int32(slot), starts, ends, jnp.broadcast_to(jnp.bool_(active), (count,)))
        return self.step(self.weights, state, jnp.asarray(h), rows)

    def chunks(self, state, h, slot, size, start=0):
        """A text (T, D) in chunks, the last of them padded: results (T, D) and the state."""
        parts = []
        for at in range(start, len(h), size):
            chunk = h[at : at + size]
            padded = np.pad(chunk, ((0, size - len(chunk)), (0, 0)), constant_values=7)
            y, state = self.run(state, padded[None], slot, at, real=len(chunk))
            parts.append(y[0, : len(chunk)])
        return np.concatenate(parts), state


@pytest.fixture(scope="module", params=CASES)
def case(request):
    mixers = CASES[request.param]
    cfg = ModelConfig.from_metadata(metadata(FAMILIES.get(request.param, "llama-gqa")))
    for mixer in mixers:
        if isinstance(mixer, MlaPart):
            assert mixer.expands(CHUNK) == (not mixer.split)
            cfg = dataclasses.replace(cfg, rope_dimension_count=mixer.rotated)
    return Case(mixers, cfg, [random_layers(mixer, cfg) for mixer in mixers])


def random_layers(mixer, cfg):
    """Weights of all layers, without those that a file may lack or has instead of others."""
    weights = {}
    for number, weight in enumerate(each for each in mixer.weights(cfg) if not (each.optional or each.replaces)):
        if weight.is_vector:
            rng = np.random.default_rng(number)
            values = rng.normal(size=(LAYERS, *weight.shape))
            values = -np.abs(values) if weight.name == "ssm_a" else values  # memories fade
            weights[weight.name] = jnp.asarray(values, jnp.float32)
        else:
            places = tuple((0, layer) for layer in range(LAYERS))
            weights[weight.name] = Stack((random_weights("Q8_0", LAYERS, *weight.shape, seed=number),), places)
    return weights


@pytest.fixture(scope="module")
def text(case):
    return np.random.default_rng(0).normal(size=(T, case.cfg.embedding_length)).astype(np.float32)


@pytest.fixture(scope="module")
def whole(case, text):
    """The text in chunks as large as may be."""
    return case.chunks(case.state(), text, 2, CHUNK)


def near(a, b):
    """DESIGN, Invariance: between executables, 1e-4 of a deviation."""
    assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-4 * np.asarray(b).std()


def test_every_kind_has_a_case():
    assert {type(mixer) for mixers in CASES.values() for mixer in mixers} == set(MIXERS)


@pytest.mark.parametrize("size", [1, 7])
def test_chunks_of_any_size_give_the_same(case, text, whole, size):
    near(case.chunks(case.state(), text, 0, size)[0], whole[0])


def test_single_tokens_go_on_where_chunks_ended(case, text, whole):
    _, state = case.chunks(case.state(), text[:250], 1, CHUNK)
    near(case.chunks(state, text, 1, 1, start=250)[0], whole[0][250:])


def test_padding_changes_no_bit_of_what_is_real(case, text):
    """What the padding holds, and that there is some: results of one program, and what the next tokens see."""
    results = []
    for filler in (0.0, 50.0):
        padded = np.concatenate([text[:10], np.full((6, text.shape[1]), filler, np.float32)])
        y, state = case.run(case.state(), padded[None], 1, 0, real=10)
        results.append((y[0, :10], case.run(state, text[None, 10:26], 1, 10)[0]))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_an_inactive_row_leaves_the_state_bit_for_bit(case, text, whole):
    _, state = whole
    for tokens, start in ((1, 40), (16, 270), (CHUNK, 0)):
        h = np.stack([text[:tokens]] * SLOTS) if tokens == 1 else text[None, :tokens]
        _, after = case.run(state, h, 0 if tokens == 1 else 2, start, active=False)
        jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize("left", [3.0, np.inf, np.nan])
def test_a_slot_begins_anew_whatever_it_held(case, text, left):
    fresh, _ = case.chunks(case.state(), text[:60], 1, CHUNK)
    again, _ = case.chunks(case.state(left), text[:60], 1, CHUNK)
    np.testing.assert_array_equal(again, fresh)


def test_rows_do_not_see_their_neighbours(case, text):
    """Four slots in one step, at positions of their own, one of them beside others and beside none."""
    _, state = case.chunks(case.state(), text[:33], 2, CHUNK)
    h = np.stack([text[at : at + 1] for at in (5, 6, 33, 7)])
    rows = Rows(jnp.int32(0), jnp.int32([0, 90, 33, 260]), jnp.int32([1, 91, 34, 261]), jnp.ones(4, bool))
    alone = rows._replace(active=jnp.asarray([False, False, True, False]), start=jnp.int32([0, 0, 33, 0]))
    beside = case.step(case.weights, state, h, rows)
    single = case.step(case.weights, state, np.where(np.arange(4)[:, None, None] == 2, h, 9).astype(np.float32), alone)
    np.testing.assert_array_equal(beside[0][2], single[0][2])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, 2], b[:, 2]), beside[1], single[1])


@pytest.mark.parametrize(("rows", "tokens"), [(SLOTS, 1), (1, CHUNK)])
def test_the_state_is_updated_in_place(case, rows, tokens):
    """In a loop over layers, as a model has it: scratch stays below one layer's state, or the step's own rows."""

    def loop(weights, state, h, where):
        numerics = Numerics(product_paths("reference"), jnp.dtype("float32"), CAPACITY, CAPACITY)
        step = Step.of(case.cfg, numerics, {}, where, tokens)

        def layer(index, carry):
            h, state = carry
            y, state = case.mix(step, weights, index, state, h)
            return h + y, state

        return jax.lax.fori_loop(0, LAYERS, layer, (h, state))

    many = Room(1024, 1024, CHUNK, "float32")  # so that the smallest state is larger than all else
    buffers = case.mixer.state(case.cfg, LAYERS, many)
    state = jax.tree.map(lambda b: jax.ShapeDtypeStruct(b.shape, jnp.dtype(b.dtype)), buffers)
    h = jax.ShapeDtypeStruct((rows, tokens, case.cfg.embedding_length), jnp.float32)
    ints, bools = (jax.ShapeDtypeStruct((rows,), dtype) for dtype in (jnp.int32, jnp.bool_))
    where = Rows(jax.ShapeDtypeStruct((), jnp.int32), ints, ints, bools)
    donated = jax.jit(loop, donate_argnums=1).lower(case.weights, state, h, where).compile()
    memory = donated.memory_analysis()
    held = sum(b.nbytes for b in buffers)
    matrices = (w for mixer in case.mixers for w in mixer.weights(case.cfg))
    weights = 4 * sum(int(np.prod(w.shape)) for w in matrices)  # one layer's, unpacked
    assert memory.alias_size_in_bytes == held
    assert memory.temp_size_in_bytes < held // LAYERS + weights + 64 * h.size * 4
    text = donated.as_text()
    shapes = {f"f32[{','.join(map(str, b.shape))}]" for b in buffers}
    copies = [line for line in text.splitlines() if " copy(" in line and any(f" = {shape}" in line for shape in shapes)]
    assert not copies


@pytest.mark.parametrize("back", [0, 1, 30, 120, 299])
def test_it_rewinds_exactly_where_it_says(case, text, whole, back):
    """After going back, the same tokens give the same again, or it said that they would not."""
    y, state = whole
    written = -(-T // CHUNK) * CHUNK
    length = T - back
    allowed = case.mixer.rewinds(case.room, written, length)
    again, _ = case.chunks(state, text, 2, 1, start=length - 1)
    same = np.abs(again - y[length - 1 :]).max() <= 1e-4 * y.std()
    assert same or not allowed
    if isinstance(case.mixer, AttentionPart | MlaPart):
        assert allowed == (not getattr(case.mixer, "window", 0) or back <= 90)


def test_a_window_keeps_itself_and_one_chunk(case):
    state = case.mixer.state(case.cfg, LAYERS, Room(1, 4096, 512, "float16"))
    if isinstance(case.mixer, AttentionPart):
        assert state.k.shape[3] == (640 if case.mixer.window else 4096)  # 20 + 511, in tiles of 128
    elif isinstance(case.mixer, MlaPart):
        assert state.latent.shape == (LAYERS, 1, 1, 4096, case.mixer.width)
    else:
        match case.mixer:
            case DeltaNetPart(heads=heads, groups=groups):
                channels = (2 * groups + heads) * 32
            case Mamba2Part(heads=heads, groups=groups, memory=memory):
                channels = heads * 32 + 2 * groups * memory
            case _:
                channels = 256
        assert state.columns.shape == (LAYERS, 1, case.mixer.taps - 1, channels)


def test_the_convolution_equals_float64(case, text, whole):
    if not isinstance(case.mixer, ShortConvPart):
        pytest.skip("of convolutions")
    first, taps, last = (
        np.asarray(w.groups[0].unpack() if isinstance(w, Stack) else w)[LAYER].astype(float)
        for w in (case.weights[0][f"shortconv.{name}"] for name in ("in_proj", "conv", "out_proj"))
    )
    gate_in, gate_out, x = np.split(text.astype(float) @ first.T, 3, axis=-1)
    inputs = np.pad(gate_in * x, ((case.mixer.taps - 1, 0), (0, 0)))
    mixed = sum(inputs[at : at + T] * taps[:, at] for at in range(case.mixer.taps))
    expected = (gate_out * mixed) @ last.T
    # Three float32 sums of 256 terms, each off by 256 * 2^-24 of what it adds up at most.
    assert np.abs(whole[0] - expected).max() <= 1e-4 * expected.std()


def test_taps_lie_in_time_order():
    inputs = jnp.arange(5, dtype=jnp.float32)[None, :, None]
    y = convolution.convolve(inputs, jnp.asarray([[0.0, 10.0, 1.0]]))
    np.testing.assert_array_equal(y[0, :, 0], [12.0, 23.0, 34.0])


def test_who_reads_another_state_may_have_queries_in_one_matrix_with_what_it_does_not_use():
    cfg = ModelConfig.from_metadata(metadata("gemma4"))
    whole = [AttentionPart(4, 2, 64), AttentionPart(4, 2, 64, reads=Source("attention", LAYER))]
    case = Case(whole, cfg, [random_layers(mixer, cfg) for mixer in whole])
    own, reader = case.weights
    (all_three,) = (weight for weight in whole[1].weights(cfg) if weight.name == "attn_qkv")
    joined = random_weights("Q8_0", LAYERS, *all_three.shape, seed=7)
    queries = dataclasses.replace(joined, blocks=joined.blocks[:, : whole[1].queries.length])
    places = reader["attn_q"].places
    h = np.random.default_rng(0).normal(size=(1, CHUNK, cfg.embedding_length)).astype(np.float32)
    results = []
    for named in ({"attn_q": queries}, {"attn_qkv": joined}):
        made = {name: Stack((matrix,), places) for name, matrix in named.items()}
        rest = {name: weight for name, weight in reader.items() if name != "attn_q"}
        results.append(dataclasses.replace(case, weights=[own, rest | made]).run(case.state(), h, 1, 0)[0])
    near(*results)
