"""QTensor: derived shape, checked construction, pytree behaviour, and row gathering against unpack-then-index."""

import re

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from packlight.common.errors import UnsupportedError
from packlight.quant.formats.table import FORMATS
from packlight.quant.layouts import pack
from packlight.quant.qtensor import QTensor, check_blocks, gather_rows, unpack

OUT, N_BLOCKS = 5, 3  # non-square in every sense


def random_blocks(qtype: str, *lead: int) -> np.ndarray:
    """Random packed blocks (*lead, bytes) whose halves are finite (the exponent's top bit is off everywhere)."""
    shape = (*lead, FORMATS[qtype].bytes)
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8) & np.uint8(0xBF)


full = jax.jit(QTensor.unpack)  # eagerly, each of some thirty operations would compile by itself
rows = jax.jit(gather_rows)


def same_bits(a, b) -> bool:
    return np.array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


@pytest.fixture
def w() -> QTensor:
    return QTensor.of(jnp.asarray(random_blocks("Q4_K", OUT, N_BLOCKS)), "Q4_K")


@pytest.mark.parametrize("qtype", FORMATS)
def test_shape_and_bytes(qtype):
    fmt = FORMATS[qtype]
    w = QTensor.of(random_blocks(qtype, 2, OUT, N_BLOCKS), qtype)
    assert w.shape == (2, OUT, N_BLOCKS * fmt.elements)
    assert w.nbytes == 2 * OUT * N_BLOCKS * fmt.bytes
    assert w.nbytes * 8 == fmt.bits_per_weight * np.prod(w.shape)


@pytest.mark.parametrize("qtype", ["Q4_K", "Q8_0", "F16", "F32", "BF16"])
def test_unpack_keeps_rows_and_block_order(qtype):
    blocks = random_blocks(qtype, OUT, N_BLOCKS)
    got = jax.jit(unpack, static_argnums=1)(blocks, qtype)
    want = gguf.quants.dequantize(blocks.reshape(OUT, -1), gguf.GGMLQuantizationType[qtype])
    assert got.shape == (OUT, N_BLOCKS * FORMATS[qtype].elements)
    assert same_bits(got, want)
    assert same_bits(got, full(QTensor.of(blocks, qtype)))
    assert full(QTensor.of(blocks[:0], qtype)).shape == (0, got.shape[1])


def test_wrong_blocks_are_refused():
    good = random_blocks("Q5_K", OUT, N_BLOCKS)
    for wrong in (good[..., :-1], good.astype(np.float32), good[0]):
        with pytest.raises(ValueError, match=r"Q5_K: want blocks uint8 \(\.\.\., out, n_blocks, 176\)"):
            QTensor.of(wrong, "Q5_K")
    with pytest.raises(ValueError, match="176"):
        unpack(np.zeros((3, 178), np.uint8), "Q5_K")
    with pytest.raises(UnsupportedError, match="Q7_K"):
        QTensor.of(good, "Q7_K")


def test_another_layout_is_refused_by_name(w):
    with pytest.raises(
        UnsupportedError, match="unknown layout 'tiles'; there are: ggml, rows4, rows8, rows16, words, col"
    ):
        QTensor.of(w.blocks, w.qtype, "tiles")
    packed = QTensor.of(pack(np.asarray(w.blocks), w.qtype, "rows8"), w.qtype, "rows8", *w.shape)
    assert packed.shape == w.shape
    with pytest.raises(UnsupportedError, match="in layout 'rows8', where 'ggml' is needed"):
        packed.unpack()
    with pytest.raises(ValueError, match="do not hold 1000 x 768 weights"):
        QTensor.of(packed.blocks, w.qtype, "rows8", 1000, w.shape[1])


def test_blocks_are_checked_against_the_weights_they_should_hold(w):
    """In ggml's layout too, where `QTensor.of` takes the blocks' word for it."""
    check_blocks(w.blocks, w.qtype)
    check_blocks(w.blocks, w.qtype, "ggml", *w.shape)
    for rows, width in ((OUT + 1, w.shape[1]), (OUT, w.shape[1] + 256)):
        with pytest.raises(ValueError, match=f"do not hold {rows} x {width} weights"):
            check_blocks(w.blocks, w.qtype, "ggml", rows, width)


def test_pytree_has_one_leaf_and_static_names(w):
    leaves, treedef = jax.tree.flatten(w)
    assert len(leaves) == 1
    assert leaves[0] is w.blocks
    back = jax.tree.unflatten(treedef, leaves)
    assert (back.qtype, back.layout) == ("Q4_K", "ggml")
    assert treedef != jax.tree.structure(QTensor(w.blocks, "Q5_K"))
    assert treedef != jax.tree.structure(QTensor(w.blocks, "Q4_K", "words"))


@pytest.mark.parametrize("leaf", [None, object(), 0, "axis", np.zeros(2, np.float32)])
def test_pytree_takes_placeholder_leaves(w, leaf):
    back = jax.tree.unflatten(jax.tree.structure(w), [leaf])
    assert back.blocks is leaf


def test_shape_of_an_abstract_qtensor(w):
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), w)
    assert abstract.shape == w.shape
    assert abstract.nbytes == w.nbytes
    assert jax.eval_shape(QTensor.unpack, abstract).shape == w.shape


def test_one_trace_per_format(w):
    traces = []

    @jax.jit
    def f(w):
        traces.append(w.qtype)
        return w.blocks.sum(dtype=jnp.int32)

    f(w)
    f(QTensor.of(w.blocks + np.uint8(1), "Q4_K"))
    assert traces == ["Q4_K"]
    f(QTensor(w.blocks, "Q5_K"))
    assert traces == ["Q4_K", "Q5_K"]


def test_scan_and_vmap_over_a_stack():
    stack = QTensor.of(jnp.asarray(random_blocks("Q8_0", 2, OUT, N_BLOCKS)), "Q8_0")
    _, scanned = jax.lax.scan(lambda c, layer: (c, layer.unpack()), 0, stack)
    assert scanned.shape == stack.shape
    want = full(stack)
    assert same_bits(scanned, want)
    assert same_bits(jax.jit(jax.vmap(QTensor.unpack))(stack), want)


@pytest.mark.parametrize("qtype", ["Q4_K", "Q6_K", "F32", "BF16"])
def test_gather_rows(qtype):
    w = QTensor.of(jnp.asarray(random_blocks(qtype, OUT, N_BLOCKS)), qtype)
    ids = np.array([[4, 0, 2], [2, 2, 3]], np.int32)
    got = rows(w, ids)
    assert got.shape == (2, 3, w.shape[1])
    assert same_bits(got, np.asarray(full(w))[ids])


def test_gather_rows_clips_ids(w):
    got = rows(w, jnp.array([-7, OUT, 10**6], jnp.int32))
    assert same_bits(got, np.asarray(full(w))[[0, OUT - 1, OUT - 1]])


def test_gather_rows_of_a_stack_is_refused(w):
    with pytest.raises(ValueError, match="one matrix"):
        gather_rows(QTensor(w.blocks[None], "Q4_K"), jnp.zeros(1, jnp.int32))


def test_gather_rows_unpacks_only_the_gathered_rows():
    w = QTensor.of(random_blocks("Q4_K", 77, N_BLOCKS), "Q4_K")
    jaxpr = str(jax.make_jaxpr(gather_rows)(w, jnp.zeros(2, jnp.int32)))
    assert set(re.findall(r"(\w+)\[77,", jaxpr)) == {"u8"}  # the table itself appears packed only
    assert set(re.findall(r"(\w+)\[77,", str(jax.make_jaxpr(QTensor.unpack)(w)))) > {"u8", "f32"}  # the search finds
