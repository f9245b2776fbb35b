"""What delta nets remember natively: against float64 and XLA's form, for every instruction set of this CPU."""

import functools

import jax
import numpy as np
import pytest
from natives import isas

from packlight.model.network.mixers import deltanet
from packlight.model.network.state import Rows

pytestmark = pytest.mark.usefixtures("native_library")


# B, T, G, H, S: single tokens, few, one chunk, several with a rest; widths that are one vector, several and a rest
SHAPES = (
    (1, 1, 1, 1, 16),
    (3, 1, 2, 6, 32),
    (2, 7, 1, 2, 48),
    (1, 8, 2, 2, 16),
    (2, 63, 2, 4, 32),
    (1, 64, 1, 3, 80),
    (1, 150, 2, 4, 128),
)
SLOTS = 5


def case(shape, start=9, pad=0, seed=0):
    """Memory of 2 layers, what tokens say, and rows from slot 1 on. Keys are of length 1; the last `pad` are padding,
    where there is NaN.
    """
    B, T, G, H, S = shape
    rng = np.random.default_rng(seed)
    memory = rng.normal(size=(2, SLOTS, H, S, S)).astype(np.float32)
    q, k, v = (rng.normal(size=(B, T, heads, S)) for heads in (G, G, H))
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    new = [q, k, v, rng.random((B, T, H)), -np.exp(rng.normal(size=(B, T, H)) - 1)]
    new = tuple(x.astype(np.float32) for x in new)
    for x in new:
        x[:, T - pad :] = np.nan
    starts = np.full(B, start, np.int32)
    return memory, np.int32(1), new, Rows(np.int32(1), starts, starts + np.int32(T - pad), np.ones(B, bool))


native = jax.jit(deltanet.remember_native, static_argnames=("consecutive", "threads", "isa"))


@functools.partial(jax.jit, static_argnames="consecutive")
def by_xla(memory, index, new, rows, consecutive):
    q, k, v, beta, fade = new
    part = deltanet.DeltaNetPart(v.shape[2], q.shape[2], q.shape[3], 4, consecutive)
    q, k = (deltanet._of_heads(part, x) for x in (q, k))
    return deltanet.remember(memory, index, deltanet.Tokens(q, k, v, beta, fade), rows)


def exact(memory, index, new, rows, consecutive):
    """Token by token in float64."""
    memory, new = memory.astype(np.float64), [x.astype(np.float64) for x in new]
    out = np.zeros(new[2].shape)
    G, H = new[0].shape[2], new[2].shape[2]
    for b, h in np.ndindex(out.shape[0], H):
        group = h // (H // G) if consecutive else h % G
        held = memory[index, rows.slot + b, h]
        held *= rows.start[b] > 0
        for t in range(rows.end[b] - rows.start[b]):
            q, k, v, beta, fade = (x[b, t, at] for x, at in zip(new, (group, group, h, h, h), strict=True))
            held *= np.exp(fade)
            held += beta * np.outer(k, v - k @ held)
            out[b, t, h] = q @ held
    return out, memory


@pytest.mark.parametrize("consecutive", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_instruction_set_equals_float64_and_xla(shape, consecutive):
    """Every number is a sum of S products of the memory and of at most 64 changes, made twice after each other: off by
    (S + 64) 2^-23 of the largest. A memory fades, so that what chunks are off by does not add up."""
    arguments = case(shape)
    wanted = exact(*arguments, consecutive)
    for name, got in [("xla", by_xla(*arguments, consecutive))] + [
        (isa, native(*arguments, consecutive, isa=isa)) for isa in isas()
    ]:
        for ours, theirs in zip(got, wanted, strict=True):
            assert np.abs(ours - theirs).max() <= (shape[-1] + 64) * 2.0**-23 * np.abs(theirs).max(), name


@pytest.mark.parametrize("fading", [0.0, -1e-3, -30.0, -1e4], ids=str)
def test_chunks_bear_repeated_keys_and_any_fading(fading):
    """As in XLA's test, whose tolerance it has."""
    memory, index, (q, k, v, beta, fade), rows = case((1, 100, 1, 1, 32), start=0)
    k[:] = k[:, :1]
    new = (
        q,
        k,
        v,
        np.full_like(beta, 0.999),
        np.float32(fading) * np.random.default_rng(0).random(fade.shape, np.float32),
    )
    wanted = exact(memory, index, new, rows, False)[0]
    for isa in isas():
        o = native(memory, index, new, rows, False, isa=isa)[0]
        assert np.abs(o - wanted).max() <= 1e-4 * wanted.std(), isa


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_a_row_has_the_same_bits_with_any_threads_neighbours_and_slot(shape):
    B, T, G, H, S = shape
    memory, index, new, rows = case((SLOTS - 1, T, G, H, S), seed=1)
    whole = native(memory, index, new, rows, False, threads=2)
    jax.tree.map(np.testing.assert_array_equal, native(memory, index, new, rows, False, threads=1), whole)
    b = 2
    one = Rows(np.int32(0), rows.start[b : b + 1], rows.end[b : b + 1], rows.active[b : b + 1])
    moved = memory[:, [1 + b, 0, 1, 2, 3]]
    alone = native(moved, index, tuple(x[b : b + 1] for x in new), one, False)
    np.testing.assert_array_equal(alone[0][0], whole[0][b])
    np.testing.assert_array_equal(alone[1][1, 0], whole[1][1, 1 + b])
    np.testing.assert_array_equal(whole[1][0], memory[0])
    np.testing.assert_array_equal(whole[1][1, 0], memory[1, 0])


@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[4], SHAPES[6]], ids=str)
def test_padding_and_inactive_rows_leave_the_memory(shape):
    B, T, G, H, S = shape
    padded = case(shape, pad=3)
    memory, index, new, rows = padded
    o, after = native(*padded, False)
    short = tuple(x[:, : T - 3] for x in new)
    expected = native(memory, index, short, rows, False)
    np.testing.assert_array_equal(o[:, : T - 3], expected[0])
    np.testing.assert_array_equal(after, expected[1])
    assert not np.asarray(o[:, T - 3 :]).any()
    o, after = native(memory, index, new, rows._replace(active=np.zeros(B, bool)), False)
    np.testing.assert_array_equal(after, memory)
    assert not np.asarray(o).any()


def test_a_text_begins_from_zeros_whatever_the_slot_held():
    memory, index, new, rows = case((2, 9, 1, 2, 32), start=0)
    fresh = native(np.zeros_like(memory), index, new, rows, False)
    again = native(np.full_like(memory, np.nan), index, new, rows, False)
    np.testing.assert_array_equal(again[0], fresh[0])
    np.testing.assert_array_equal(again[1][1, 1:3], fresh[1][1, 1:3])


def test_what_does_not_fit_is_refused():
    memory, index, new, rows = case((1, 2, 2, 4, 16))
    for wrong, said in (
        ((memory[..., :8], index, new, rows), "want q and k"),
        ((memory, np.int32(2), new, rows), "outside the memory"),
        ((memory, index, new, rows._replace(slot=np.int32(SLOTS))), "outside the memory"),
        ((memory, index, (*new[:3], new[3][:, :1], new[4]), rows), "beta and fade"),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match=said):
            jax.block_until_ready(native(*wrong, False))
