"""Layouts and recipes of the Mosaic kernels, bit for bit, and the kernels as pallas interprets them on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import product

from packlight.bench.blocks import random_blocks
from packlight.compile.kernels import product_paths
from packlight.quant.formats.table import FORMATS
from packlight.quant.kernels import mosaic_gpu, mosaic_tpu
from packlight.quant.kernels.recipes import recipe
from packlight.quant.layouts import (
    GROUP,
    GROUPS_AT_A_TIME,
    MOSAIC,
    SUPERBLOCKS,
    blocks_shape,
    pack,
    superblock_order,
    unpack,
)
from packlight.quant.matmul import matmul
from packlight.quant.qtensor import QTensor, gather_rows
from packlight.quant.qtensor import unpack as values_of

ELEMENTS = 608  # two super-blocks and a part of one, where blocks are short; else two
UNIT = 2.0**-24


def random_matrix(qtype: str, out: int, width: int = ELEMENTS) -> np.ndarray:
    """Valid random blocks (out, N, bytes) of N whole blocks."""
    fmt = FORMATS[qtype]
    n = width // fmt.elements
    return random_blocks(fmt, out * n, 0.05, np.random.default_rng(3)).reshape(out, n, fmt.bytes)


def in_layout(blocks: np.ndarray, qtype: str, layout: str) -> QTensor:
    out, n, _ = blocks.shape
    return QTensor.of(jnp.asarray(pack(blocks, qtype, layout)), qtype, layout, out, n * FORMATS[qtype].elements)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


@pytest.mark.parametrize("layout", MOSAIC)
@pytest.mark.parametrize("qtype", SUPERBLOCKS)
def test_a_layout_is_a_permutation_of_bytes_with_zeros_behind(qtype, layout):
    fmt = FORMATS[qtype]
    per, lengths = SUPERBLOCKS[qtype]
    assert (per * fmt.elements, sum(lengths)) == (256, fmt.bytes)
    assert sorted(superblock_order(qtype)) == list(range(per * fmt.bytes))
    for out in (1, 128, 130):
        blocks = random_matrix(qtype, out)
        packed = pack(blocks, qtype, layout)
        assert packed.shape == blocks_shape(out, blocks.shape[1], fmt.bytes, layout, qtype)
        assert packed.sum(dtype=np.int64) == blocks.sum(dtype=np.int64)
        np.testing.assert_array_equal(unpack(packed, qtype, layout, out, blocks.shape[1]), blocks)


def placed(blocks: np.ndarray, qtype: str, layout: str) -> np.ndarray:
    """`pack` as its definition has it: each byte looked up by itself."""
    (out, n, size), per, order = blocks.shape, SUPERBLOCKS[qtype][0], superblock_order(qtype)
    shape = blocks_shape(out, n, size, layout, qtype)
    groups, count, whole = (shape[2] // GROUP, *shape[:2]) if layout == "columns" else (*shape[:2], shape[2] // GROUP)
    padded = np.zeros((groups * GROUP, count * per, size), np.uint8)
    padded[:out, :n] = blocks
    rows = np.zeros((groups * GROUP, count, whole), np.uint8)
    rows[..., : order.size] = padded.reshape(groups * GROUP, count, -1)[..., order]
    if layout == "columns":
        return rows.transpose(1, 2, 0)
    return rows.reshape(groups, GROUP, count, whole // 4, 4).transpose(0, 2, 3, 1, 4).reshape(shape)


@pytest.mark.parametrize("layout", MOSAIC)
@pytest.mark.parametrize("qtype", SUPERBLOCKS)
def test_many_rows_are_packed_at_once(qtype, layout):
    """More than a thread takes, the last of them few; into a place that is given, which held something else."""
    blocks = random_matrix(qtype, 2 * GROUPS_AT_A_TIME * GROUP + 70)
    want = placed(blocks, qtype, layout)
    np.testing.assert_array_equal(pack(blocks, qtype, layout), want)
    given = np.full((3, *want.shape), 255, np.uint8)
    pack(blocks, qtype, layout, given[1])
    np.testing.assert_array_equal(given[1], want)
    assert given[0].min() == given[2].min() == 255


@pytest.mark.parametrize("layout", MOSAIC)
@pytest.mark.parametrize("qtype", ["Q4_K", "Q6_K", "Q5_1", "F16", "NVFP4"])
def test_rows_are_gathered_from_every_layout(qtype, layout):
    blocks = random_matrix(qtype, 131)
    ids = jnp.array([[0, 130], [128, 5]], jnp.int32)
    want = gather_rows(QTensor.of(jnp.asarray(blocks), qtype), ids)
    assert same_bits(gather_rows(in_layout(blocks, qtype, layout), ids), want)


@pytest.mark.parametrize("qtype", SUPERBLOCKS)
def test_recipes_give_the_formats_values(qtype):
    """Both readings of the table: runs of bytes of many columns, and words of four bytes of many rows."""
    blocks, how = random_matrix(qtype, 3), recipe(qtype)
    want = np.asarray(values_of(blocks, qtype))
    width = want.shape[1]
    columns = pack(blocks, qtype, "columns")[..., :3].astype(np.int32)
    runs = [np.asarray(mosaic_tpu._unpack(jnp.asarray(block), how)) for block in columns]
    got = np.concatenate(runs).T
    assert same_bits(got[:, :width], want)
    assert not got[:, width:].any()
    words = pack(blocks, qtype, "words").reshape(1, len(columns), -1, GROUP, 4).view(np.int32)[0, ..., :3, 0]
    for at, block in enumerate(map(jnp.asarray, words)):
        scales = how.scales(lambda k, block=block: (block[k // 4] >> 8 * (k % 4)) & 255)
        elements = []
        for w in range(how.run // 4):
            for element, weight in mosaic_gpu.weights(how, lambda k, block=block: block[k], scales, w):
                column = want[:, 256 * at + element] if 256 * at + element < width else np.asarray(weight) * 0
                assert same_bits(weight, column)
                elements.append(element)
        assert sorted(elements) == list(range(256))


TPU_CASES = [
    (qtype, 1 + 8 * (i % 2)) if qtype in ("Q8_0", "Q4_K", "Q6_K") else product(qtype, 1 + 8 * (i % 2))
    for i, qtype in enumerate(SUPERBLOCKS)
]  # each interpretation takes a second


def check(x: np.ndarray, values: np.ndarray, y: jax.Array, extra: float = 0.0) -> None:
    """`y` is x @ values.T within the rounding of a float32 sum (test_matmul.py), plus `extra` of each product."""
    magnitude = np.abs(x).astype(np.float64) @ np.abs(values).astype(np.float64).T
    error = np.abs(np.asarray(y) - x.astype(np.float64) @ values.astype(np.float64).T)
    assert y.shape == error.shape
    np.testing.assert_array_less(error, (x.shape[1] * UNIT + extra) * magnitude + 1e-30)


@pytest.mark.parametrize(("qtype", "rows"), TPU_CASES)
def test_tpu_kernel(qtype, rows):
    blocks = random_matrix(qtype, 130)
    values = np.asarray(values_of(blocks, qtype))
    x = np.random.default_rng(1).normal(size=(rows, values.shape[1])).astype(np.float32)
    packed = jnp.asarray(np.stack([np.zeros_like(pack(blocks, qtype, "columns")), pack(blocks, qtype, "columns")]))
    y = mosaic_tpu.product(jnp.asarray(x), packed, qtype, jnp.int32(1), 130, interpret=True)
    check(x, values, y)
    if qtype not in ("F32", "Q8_0", "Q4_K"):  # each interpretation takes a second
        return
    rounded = jnp.asarray(x, jnp.bfloat16)
    y = mosaic_tpu.product(rounded, packed, qtype, jnp.int32(1), 130, interpret=True)
    # both factors of a product are rounded to 8 significant bits; x's rounding is in `rounded` already
    check(np.asarray(rounded.astype(jnp.float32)), values, y, extra=2.0**-9)


def test_tpu_kernel_over_several_tiles_of_rows_and_columns(monkeypatch):
    monkeypatch.setattr(mosaic_tpu, "MOST_ROWS", 8)
    monkeypatch.setattr(mosaic_tpu, "COLUMNS", 128)
    monkeypatch.setattr(mosaic_tpu, "BLOCK_BYTES", 1 << 15)
    blocks = random_matrix("Q5_K", 300, 1536)
    values = np.asarray(values_of(blocks, "Q5_K"))
    x = np.random.default_rng(2).normal(size=(19, 1536)).astype(np.float32)
    packed = jnp.asarray(pack(blocks, "Q5_K", "columns"))[None]
    check(x, values, mosaic_tpu.product(jnp.asarray(x), packed, "Q5_K", jnp.int32(0), 300, interpret=True))


@pytest.mark.parametrize(("qtype", "rows"), [("Q4_K", 1), ("Q5_0", 3), ("Q6_K", 9)])
def test_gpu_kernels(qtype, rows, monkeypatch):
    """As pallas simulates threads, barriers and copies; no public name gives that mode, hence the import."""
    interpreter = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params")
    monkeypatch.setattr(mosaic_gpu, "BLOCKS", 1)  # so that a block of threads takes several super-blocks
    blocks = random_matrix(qtype, 130)
    values = np.asarray(values_of(blocks, qtype))
    x = np.random.default_rng(1).normal(size=(rows, values.shape[1])).astype(np.float32)
    packed = jnp.asarray(np.stack([np.zeros_like(pack(blocks, qtype, "words")), pack(blocks, qtype, "words")]))
    how = interpreter.InterpretGPUParams()
    check(x, values, mosaic_gpu.product(jnp.asarray(x), packed, qtype, jnp.int32(1), 130, interpret=how))


@pytest.mark.parametrize("layout", MOSAIC)
@pytest.mark.parametrize("rows", [1, 12])
def test_what_lies_behind_a_super_block_is_not_read(layout, rows):
    """As where layers of a narrower format lie in places of a wider one."""
    packed = in_layout(random_matrix("Q4_K", 130), "Q4_K", layout)
    axis, more = (1, 216) if layout == "columns" else (2, 53 * 512)
    widths = [(0, 0)] * 3
    widths[axis] = (0, more - packed.blocks.shape[axis])
    wide = jnp.pad(packed.blocks, widths, constant_values=255)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((rows, packed.shape[-1])), jnp.float32)
    if layout == "columns":
        kernel, interpret = mosaic_tpu, True
    else:
        interpreter = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params")
        kernel, interpret = mosaic_gpu, interpreter.InterpretGPUParams()
    made = [kernel.product(x, w[None], "Q4_K", jnp.int32(0), 130, interpret=interpret) for w in (packed.blocks, wide)]
    assert same_bits(*made)


def test_tiles_cover_the_groups_fill_the_card_and_stay_small():
    for groups in (1, 2, 3, 44, 250, 251, 1002):
        for row_bytes in (512, 8192, 22528, 57344):
            for rows in (9, 128, 512, 2048):
                tile = mosaic_gpu.tile_groups(rows, groups, row_bytes)
                assert 1 <= tile <= max(1, mosaic_gpu.MOST_TILE_BYTES // (row_bytes * GROUP))
                assert -(-groups // tile) * tile < groups + tile
    assert mosaic_gpu.tile_groups(512, 32, 2 * 4096) == 32  # 4096 columns: 128 pieces of 128 x 128
    assert mosaic_gpu.tile_groups(1024, 32, 2 * 4096) == 16  # as many by half of the columns
    assert mosaic_gpu.tile_groups(512, 112, 2 * 4096) == 28


def test_formats_without_a_recipe_take_another_path_by_name():
    for qtype in FORMATS:
        for path in ("mosaic_gpu", "mosaic_tpu"):
            assert product_paths(path)[qtype] == (path if qtype in SUPERBLOCKS else "xla")


def test_a_path_refuses_the_other_layout():
    w = in_layout(random_matrix("Q4_K", 3), "Q4_K", "words")
    with pytest.raises(ValueError, match="path 'mosaic_tpu' reads layout 'columns', not 'words'"):
        matmul(jnp.ones((1, w.shape[1])), w, "mosaic_tpu")
