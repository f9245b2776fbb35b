"""Every format decodes bit for bit: as gguf-py on blocks made here, as ggml's own stored values, and exhaustively.

`decode` pads to one batch shape, so that each format compiles once in this file.
"""

import dataclasses
import functools
import json
import subprocess
import sys

import format_goldens
import gguf
import jax
import numpy as np
import pytest
from blocks import SPECIAL_HALVES, clean_blocks, plant
from conftest import GOLDENS_FOLDER, SHARED
from hypothesis import given, settings
from hypothesis import strategies as st

from packlight.common.errors import UnsupportedError
from packlight.quant.formats import scales
from packlight.quant.formats.scales import SCALES, nonfinite_block
from packlight.quant.formats.table import BY_TYPE_ID, FORMATS, Format, format_named

pytestmark = pytest.mark.shipped
BATCH = format_goldens.COUNT
FORMAT_GOLDENS = json.loads((GOLDENS_FOLDER / "format_goldens.json").read_text())
# Types gguf knows that are never a stored weight: ggml's intermediate formats, integers and f64.
NOT_WEIGHTS = {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"}
all_formats = pytest.mark.parametrize("qtype", FORMATS)


@functools.cache
def jitted(qtype: str):
    return jax.jit(FORMATS[qtype].unpack)


def decode(qtype: str, blocks: np.ndarray) -> np.ndarray:
    """uint8 (n, bytes) -> float32 (n, elements) through the jitted unpack, 128 blocks at a time."""
    padded = np.zeros((-(-len(blocks) // BATCH) * BATCH, blocks.shape[1]), np.uint8)
    padded[: len(blocks)] = blocks
    parts = [np.asarray(jitted(qtype)(padded[i : i + BATCH])) for i in range(0, len(padded), BATCH)]
    return np.concatenate(parts)[: len(blocks)]


def oracle(qtype: str, blocks: np.ndarray) -> np.ndarray:
    """The same by gguf-py; in numpy for Q1_0 and Q2_0, which it cannot decode."""
    if qtype in ("Q1_0", "Q2_0"):
        d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        stream = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(np.float32)
        q = 2 * stream - 1 if qtype == "Q1_0" else stream[:, 0::2] + 2 * stream[:, 1::2] - 1
        with np.errstate(all="ignore"):
            return d * q
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[qtype]).reshape(len(blocks), -1)


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    """Equal bit patterns, the sign of zero included; a NaN's payload is free."""
    assert got.dtype == want.dtype == np.float32
    assert got.shape == want.shape
    differ = (got.view(np.uint32) != want.view(np.uint32)) & ~(np.isnan(got) & np.isnan(want))
    at = tuple(np.argwhere(differ)[0]) if differ.any() else None
    assert at is None, f"{differ.sum()} values differ, first at {at}: {got[at]!r} for {want[at]!r}"


def check_sizes(formats: dict[str, Format]) -> None:
    """R1's size check: names, type ids, elements and bytes are gguf's."""
    for name, fmt in formats.items():
        assert fmt.name == name
        if name == "Q2_0":  # too new for gguf 0.19: d and 64 quants of 2 bits
            assert (fmt.type_id, fmt.elements, fmt.bytes) == (42, 64, 2 + 64 * 2 // 8)
            continue
        known = gguf.GGMLQuantizationType[name]
        assert (fmt.type_id, fmt.elements, fmt.bytes) == (known.value, *gguf.GGML_QUANT_SIZES[known]), name


def check_values(fmt: Format, stream: np.ndarray, want: np.ndarray) -> None:
    """R1's value check on a row's bytes, cut where the table says: uint8 (n * bytes,), float32 (n, elements)."""
    assert stream.size % fmt.bytes == 0
    assert_same_bits(np.asarray(jax.jit(fmt.unpack)(stream.reshape(-1, fmt.bytes))), want)


def test_sizes():
    check_sizes(FORMATS)
    assert len(BY_TYPE_ID) == len(FORMATS)


def test_every_stored_type_of_gguf_is_known():
    assert {t.name for t in gguf.GGML_QUANT_SIZES} - NOT_WEIGHTS <= set(FORMATS)
    with pytest.raises(UnsupportedError, match="'Q8_K'.*Q4_K"):
        format_named("Q8_K")


def test_mutation_q5_k_of_178_bytes_fails():
    """The trap: 178 instead of 176. 89 * 176 == 88 * 178, so these bytes can be cut either way without a remainder."""
    right = FORMATS["Q5_K"]
    wrong = dataclasses.replace(right, bytes=178)
    with pytest.raises(AssertionError, match="Q5_K"):
        check_sizes(FORMATS | {"Q5_K": wrong})

    blocks = clean_blocks("Q5_K", 89)
    want = oracle("Q5_K", blocks)
    check_values(right, blocks.reshape(-1), want)
    with pytest.raises((AssertionError, TypeError)):
        check_values(wrong, blocks.reshape(-1), want[:88])
    lenient = blocks.reshape(88, 178)[:, :176]  # a decoder that ignored the two extra bytes would be caught as well
    with pytest.raises(AssertionError, match="values differ"):
        assert_same_bits(decode("Q5_K", lenient), want[:88])


@all_formats
def test_random_blocks(qtype):
    blocks = clean_blocks(qtype, BATCH)
    want = oracle(qtype, blocks)
    assert np.isfinite(want).all() or qtype in ("F32", "BF16", "MXFP4")  # MXFP4's largest scales overflow to inf
    assert_same_bits(decode(qtype, blocks), want)


@all_formats
def test_values_are_ggmls(qtype):
    values = decode(qtype, clean_blocks(qtype, BATCH))
    assert format_goldens.digest(values) == FORMAT_GOLDENS[qtype]


@pytest.mark.shared
@all_formats
def test_ggmls_stored_values(qtype):
    with np.load(SHARED / "formats" / f"{qtype}.npz") as stored:
        assert (stored["type_id"], stored["block_size"]) == (FORMATS[qtype].type_id, FORMATS[qtype].elements)
        assert_same_bits(decode(qtype, stored["packed"]), stored["values"])
        assert_same_bits(decode(qtype, stored["enc_packed"]), stored["enc_values"])


@all_formats
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_any_bytes(qtype, data):
    """Arbitrary bytes under a special scale, non-finite ones included."""
    raw = data.draw(st.binary(min_size=FORMATS[qtype].bytes, max_size=FORMATS[qtype].bytes))
    blocks = np.tile(np.frombuffer(raw, np.uint8), (len(SPECIAL_HALVES) + 3, 1))
    plant(qtype, blocks[:-1], np.append(SPECIAL_HALVES, [0x7C00, 0x7E01]))  # the last block keeps its drawn bytes
    assert_same_bits(decode(qtype, blocks), oracle(qtype, blocks))


@pytest.mark.parametrize("qtype", ["F16", "BF16"])
def test_every_16_bit_float(qtype):
    blocks = np.arange(1 << 16, dtype="<u2").view(np.uint8).reshape(-1, 2)
    assert_same_bits(np.asarray(jitted(qtype)(blocks)), oracle(qtype, blocks))


def test_f32_subnormals_keep_their_bits():
    words = np.array([0, 1, 0x007FFFFF, 0x00800000, 0x80000000, 0x80000001, 0x7F800000], "<u4")
    got = decode("F32", words.view(np.uint8).reshape(-1, 4))
    assert got.view(np.uint32)[:, 0].tolist() == words.tolist()


@pytest.mark.parametrize(("qtype", "scale_bytes"), [("MXFP4", 1), ("NVFP4", 4)])
def test_every_scale_byte_with_every_code(qtype, scale_bytes):
    """All 256 scale bytes; the second half's codes are the first half's reversed, so both nibbles see all 16."""
    quants = np.resize(np.arange(16, dtype=np.uint8) * 0x10 + np.arange(16, dtype=np.uint8)[::-1], 36)
    blocks = np.tile(quants[: FORMATS[qtype].bytes], (256, 1))
    blocks[:, :scale_bytes] = np.arange(256, dtype=np.uint8)[:, None]
    want = oracle(qtype, blocks)
    subnormal = (want != 0) & (np.abs(want) < np.finfo(np.float32).tiny)
    assert subnormal.any() == (qtype == "MXFP4")  # the case that arithmetic would flush
    assert_same_bits(decode(qtype, blocks), want)


@all_formats
def test_leading_axes(qtype):
    fmt = FORMATS[qtype]
    for lead in ((), (3,), (2, 3), (0,), (2, 0, 5)):
        out = jax.eval_shape(fmt.unpack, jax.ShapeDtypeStruct((*lead, fmt.bytes), np.uint8))
        assert (out.shape, out.dtype) == ((*lead, fmt.elements), np.float32)


@all_formats
def test_nonfinite_block(qtype, monkeypatch):
    monkeypatch.setattr(scales, "CHUNK_BLOCKS", 16)  # many chunks, the last one short
    blocks = clean_blocks(qtype, 100)
    assert nonfinite_block(blocks, qtype) is None
    at, later = np.sort(np.random.default_rng(len(qtype)).choice(100, 2, replace=False))
    damaged = []
    for half in (0x7C00, 0xFC00, 0x7E00, 0xFFFF):  # inf, -inf, NaNs, in every half at once; no change without halves
        damaged.append(blocks.copy())
        plant(qtype, damaged[-1], half)
    for scale in SCALES[qtype]:  # each scale alone
        for other_bits in (0x00, 0xFF):
            damaged.append(blocks.copy())
            for byte, mask in scale:
                damaged[-1][:, byte] = mask | other_bits
    for bad in damaged:
        if not np.array_equal(bad, blocks):
            one = blocks.copy()
            one[[at, later]] = bad[[at, later]]
            assert nonfinite_block(one, qtype) == at
            assert nonfinite_block(one.reshape(4, 25, -1), qtype) == at  # the flat index
            assert nonfinite_block(one[:at], qtype) is None


@all_formats
def test_nonfinite_block_agrees_with_the_values(qtype):
    """Independent of the table of offsets: random blocks are reported exactly when gguf-py decodes a NaN or inf.

    MXFP4 and NVFP4 decode their NaN codes as numbers, so there the specification's codes are the reference.
    """
    blocks = np.random.default_rng(1).integers(0, 256, (400, FORMATS[qtype].bytes), dtype=np.uint8)
    blocks[200:, -1] |= 0x7C  # a half at the end of the block, and F32's or BF16's exponent, is often non-finite
    if qtype == "MXFP4":
        want = blocks[:, 0] == 255
    elif qtype == "NVFP4":
        want = ((blocks[:, :4] & 0x7F) == 0x7F).any(axis=1)
    else:
        want = ~np.isfinite(oracle(qtype, blocks)).all(axis=1)
    assert want.any()
    assert not want.all()
    got = np.array([nonfinite_block(b, qtype) is not None for b in blocks])
    assert got.tolist() == want.tolist()


def test_nonfinite_block_refuses_other_arrays():
    blocks = clean_blocks("Q4_0", 4)
    for wrong in (blocks[:, :17], blocks[::2], blocks.view(np.int8), np.uint8(3)):
        with pytest.raises(ValueError, match="Q4_0"):
            nonfinite_block(np.asarray(wrong), "Q4_0")
    assert nonfinite_block(blocks[:0], "Q4_0") is None


def test_sizes_and_scales_import_no_jax():
    modules = "packlight.quant.formats.table, packlight.quant.formats.scales"
    code = f"import sys, {modules}; assert not {{'jax', 'gguf'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
