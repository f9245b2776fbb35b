"""What Mamba-2 remembers natively: against float64 and XLA's form, for every instruction set of this CPU."""

import jax
import numpy as np
import pytest
from natives import isas

from packlight.model.network.mixers import mamba2
from packlight.model.network.state import Rows

pytestmark = pytest.mark.usefixtures("native_library")


# B, T, J, C, U, N: single tokens, a few, more than a chunk; widths that are one vector, several and a rest
SHAPES = (
    (1, 1, 1, 16, 1, 8),
    (3, 1, 6, 32, 2, 16),
    (2, 7, 2, 48, 1, 5),
    (1, 64, 3, 80, 3, 16),
    (1, 150, 4, 64, 2, 128),
)
SLOTS = 5


def case(shape, start=9, pad=0, seed=0):
    """Memory of 2 layers, what tokens say, and rows from slot 1 on. The last `pad` are padding, where there is NaN."""
    B, T, J, C, U, N = shape
    rng = np.random.default_rng(seed)
    memory = rng.normal(size=(2, SLOTS, J, N, C)).astype(np.float32)
    new = [rng.normal(size=(B, T, *each)) for each in ((J, C), (U, N), (U, N))]
    new = mamba2.Tokens(*(x.astype(np.float32) for x in (*new, -np.exp(rng.normal(size=(B, T, J)) - 1))))
    for x in new:
        x[:, T - pad :] = np.nan
    starts = np.full(B, start, np.int32)
    return memory, np.int32(1), new, Rows(np.int32(1), starts, starts + np.int32(T - pad), np.ones(B, bool))


native = jax.jit(mamba2.remember_native, static_argnames=("threads", "isa"))
by_xla = jax.jit(mamba2.remember)


def exact(memory, index, new, rows):
    """Token by token in float64."""
    memory, (x, b, c, fade) = memory.astype(np.float64), [each.astype(np.float64) for each in new]
    out = np.zeros(x.shape)
    for row, j in np.ndindex(x.shape[0], x.shape[2]):
        group, held = j // (x.shape[2] // b.shape[2]), memory[index, rows.slot + row, j]
        held *= rows.start[row] > 0
        for t in range(rows.end[row] - rows.start[row]):
            held *= np.exp(fade[row, t, j])
            held += np.outer(b[row, t, group], x[row, t, j])
            out[row, t, j] = c[row, t, group] @ held
    return out, memory


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_instruction_set_equals_float64_and_xla(shape):
    """Every number is a sum of N products of the memory, which is one of at most 64 tokens before it fades away: off by
    (N + 64) 2^-23 of the largest."""
    arguments = case(shape)
    wanted = exact(*arguments)
    for name, got in [("xla", by_xla(*arguments))] + [(isa, native(*arguments, isa=isa)) for isa in isas()]:
        for ours, theirs in zip(got, wanted, strict=True):
            assert np.abs(ours - theirs).max() <= (shape[-1] + 64) * 2.0**-23 * np.abs(theirs).max(), name


@pytest.mark.parametrize("fading", [0.0, -30.0, -1e4, -1e30], ids=str)
def test_any_fading_is_borne(fading):
    memory, index, new, rows = case((1, 100, 1, 32, 1, 32), start=0)
    fade = np.float32(fading) * np.random.default_rng(0).random(new.fade.shape, np.float32)
    new = new._replace(fade=np.where(np.arange(100)[:, None] % 5, new.fade, fade))
    wanted = exact(memory, index, new, rows)[0]
    for isa in isas():
        y = native(memory, index, new, rows, isa=isa)[0]
        assert np.abs(y - wanted).max() <= 100 * 2.0**-23 * np.abs(wanted).max(), isa


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_a_row_has_the_same_bits_with_any_threads_neighbours_and_slot(shape):
    memory, index, new, rows = case((SLOTS - 1, *shape[1:]), seed=1)
    whole = native(memory, index, new, rows, threads=2)
    jax.tree.map(np.testing.assert_array_equal, native(memory, index, new, rows, threads=1), whole)
    b = 2
    one = Rows(np.int32(0), rows.start[b : b + 1], rows.end[b : b + 1], rows.active[b : b + 1])
    moved = memory[:, [1 + b, 0, 1, 2, 3]]
    alone = native(moved, index, mamba2.Tokens(*(x[b : b + 1] for x in new)), one)
    np.testing.assert_array_equal(alone[0][0], whole[0][b])
    np.testing.assert_array_equal(alone[1][1, 0], whole[1][1, 1 + b])
    np.testing.assert_array_equal(whole[1][0], memory[0])
    np.testing.assert_array_equal(whole[1][1, 0], memory[1, 0])


@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[4]], ids=str)
def test_padding_and_inactive_rows_leave_the_memory(shape):
    T = shape[1]
    padded = case(shape, pad=3)
    memory, index, new, rows = padded
    y, after = native(*padded)
    expected = native(memory, index, mamba2.Tokens(*(x[:, : T - 3] for x in new)), rows)
    np.testing.assert_array_equal(y[:, : T - 3], expected[0])
    np.testing.assert_array_equal(after, expected[1])
    assert not np.asarray(y[:, T - 3 :]).any()
    y, after = native(memory, index, new, rows._replace(active=np.zeros(shape[0], bool)))
    np.testing.assert_array_equal(after, memory)
    assert not np.asarray(y).any()


def test_a_text_begins_from_zeros_whatever_the_slot_held():
    memory, index, new, rows = case((2, 9, 2, 32, 1, 16), start=0)
    fresh = native(np.zeros_like(memory), index, new, rows)
    again = native(np.full_like(memory, np.nan), index, new, rows)
    np.testing.assert_array_equal(again[0], fresh[0])
    np.testing.assert_array_equal(again[1][1, 1:3], fresh[1][1, 1:3])


def test_what_does_not_fit_is_refused():
    memory, index, new, rows = case((1, 2, 4, 16, 2, 8))
    for wrong, said in (
        ((memory[..., :8], index, new, rows), "want x"),
        ((memory, np.int32(2), new, rows), "outside the memory"),
        ((memory, index, new, rows._replace(slot=np.int32(SLOTS))), "outside the memory"),
        ((memory, index, new._replace(fade=new.fade[:, :1]), rows), "want c as b, fade"),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match=said):
            jax.block_until_ready(native(*wrong))
