"""The random models of bench.synthetic: valid containers, sane weights, llama.cpp's mixes, the same bytes per seed."""

import collections
import dataclasses
import pathlib
import subprocess
import sys

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from ggufs import write_llama

import packlight
from packlight.bench.blocks import SCALES, UE4M3, random_blocks
from packlight.bench.shapes import SHAPES, Latent, Mamba, Mixture, Shape
from packlight.bench.synthetic import MOE_MIX, main, plan, shape_format, spm_tokens, write
from packlight.model.gguf.reader import open_gguf, read_tensor
from packlight.model.spec.mixes import more_bits
from packlight.quant.formats.table import FORMATS

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = Shape(layers=8, embed=256, ffn=768, heads=8, kv_heads=2, vocab=320, context=128)
# gguf-py has no dequantizer for these: (quants of a block, their value). Source: ggml-common.h, block_q1_0, block_q2_0
FORMULAS = {
    "Q1_0": lambda b: np.unpackbits(b[:, 2:], axis=1, bitorder="little").astype(np.float32) * 2 - 1,
    "Q2_0": lambda b: (b[:, 2:, None] >> np.arange(0, 8, 2) & 3).reshape(len(b), 64).astype(np.float32) - 1,
}


def values(fmt, blocks):
    """float32 (count, elements) of uint8 (count, bytes)."""
    if fmt.name in FORMULAS:
        return FORMULAS[fmt.name](blocks) * blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if fmt.name == "F16":
        return blocks.view(np.float16).astype(np.float32)
    return dequantize(blocks, gguf.GGMLQuantizationType(fmt.type_id))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("width", [256, 14336])
def test_blocks_have_sane_values(name, width):
    fmt = FORMATS[name]
    count = 64 * 14336 // fmt.elements
    blocks = random_blocks(fmt, count, width**-0.5, np.random.default_rng(0))
    assert blocks.shape == (count, fmt.bytes)
    assert blocks.dtype == np.uint8
    weights = values(fmt, blocks)
    assert weights.shape == (count, fmt.elements)
    assert np.isfinite(weights).all()
    assert 0.5 < weights.std() * width**0.5 < 2
    assert abs(weights.mean()) < 0.05 * weights.std()
    # every block has a scale of its own: none is all zero
    assert (fmt.elements == 1) or (np.abs(weights).max(1) > 0).mean() > 0.999


def test_scales_are_where_the_structs_have_them():
    """Zeroing what SCALES calls the scales must zero the weights."""
    for name, at in SCALES.items():
        blocks = random_blocks(FORMATS[name], 32, 1.0, np.random.default_rng(0))
        blocks[:, at.at : at.at + 2] = 0
        if at.minimum is not None:
            blocks[:, at.minimum : at.minimum + 2] = 0
        assert not values(FORMATS[name], blocks).any(), name


def test_nvfp4_scale_table():
    assert UE4M3[0] == 0
    assert UE4M3[0x38] == 1
    assert UE4M3[126] == 448
    assert (np.diff(UE4M3) > 0).all()


@pytest.mark.parametrize("name", FORMATS)
def test_file_of_each_format(name, tmp_path):
    path = tmp_path / "m.gguf"
    assert write(path, SMALL, f"pure-{name}", seed=3) == path.stat().st_size
    file = open_gguf(path)
    matrices = [t for t in file.tensors.values() if len(t.shape) == 2]
    assert {t.format.name for t in matrices} == {name}
    assert len(matrices) == 7 * 8 + 2
    down = file.tensors["blk.5.ffn_down.weight"]
    assert down.shape == (256, 768)
    weights = values(down.format, read_tensor(down).reshape(-1, down.format.bytes))
    assert np.isfinite(weights).all()
    assert 0.5 < weights.std() * 768**0.5 < 2
    norm = read_tensor(file.tensors["blk.0.ffn_norm.weight"]).reshape(-1).view(np.float32)
    assert norm.shape == (256,)
    assert 0.5 < norm.min() < norm.max() < 1.5


FFN = "ffn_norm ffn_gate ffn_up ffn_down"
ATTENTION = "attn_norm attn_q attn_k attn_v attn_output attn_q_norm attn_k_norm"
GEMMA3 = f"{ATTENTION} post_attention_norm post_ffw_norm {FFN}"
CONVOLUTION = f"attn_norm shortconv.conv shortconv.in_proj shortconv.out_proj {FFN}"


@pytest.fixture
def small(tmp_path):
    """Writes a shape of its name with few, narrow layers."""

    def write_small(name, **changes):
        sizes = {"layers": 3, "embed": 256, "ffn": 512, "heads": 4, "kv_heads": 2, "vocab": 300, "context": 128}
        write(tmp_path / "m", dataclasses.replace(SHAPES[name], **sizes | changes), "Q4_K_M")
        return open_gguf(tmp_path / "m")

    return write_small


@pytest.mark.parametrize(
    ("name", "layers", "last"),
    [
        ("gemma-3-4b", [GEMMA3, GEMMA3, GEMMA3], "output_norm"),
        ("lfm2-1.2b", [CONVOLUTION, CONVOLUTION, f"{ATTENTION} {FFN}"], "token_embd_norm"),
    ],
)
def test_architectures_have_their_tensors(name, layers, last, small):
    file = small(name)
    expected = {f"blk.{i}.{base}.weight" for i, bases in enumerate(layers) for base in bases.split()}
    assert set(file.tensors) == expected | {"token_embd.weight", f"{last}.weight"}
    vectors = {n for n, t in file.tensors.items() if t.format.name == "F32"}
    assert vectors == {n for n in file.tensors if n.endswith(("norm.weight", "conv.weight"))}
    assert file.tensors["token_embd.weight"].format.name == "Q6_K"


@pytest.mark.parametrize("name", ["qwen3-4b", "qwen3-30b-a3b", "gpt-oss-20b"])
def test_packlight_runs_it(name, small):
    """Nothing is missing and nothing left over."""
    changes = {"head_dim": 64} | ({} if name == "qwen3-4b" else {"mixture": Mixture(4, 2, 256)})
    assert packlight.inspect(small(name, **changes).path)["unsupported"] == []


def test_experts_and_what_is_beside_them():
    assert {shape_format(MOE_MIX, base, 0, SHAPES["gpt-oss-20b"]) for base in ("attn_q", "token_embd")} == {"Q8_0"}
    assert shape_format(MOE_MIX, "ffn_down_exps", 0, SHAPES["gpt-oss-20b"]) == "MXFP4"


def test_gemma3_is_what_packlight_runs(small):
    file = small("gemma-3-4b", head_dim=128, window=16)
    report = packlight.inspect(file.path)
    assert report["unsupported"] == []
    assert report["hyperparameters"]["slides"] == (True, True, True)
    assert report["hyperparameters"]["sliding_window"] == 16
    assert file.tensors["blk.1.attn_q.weight"].shape == (512, 256)
    assert file.tensors["blk.1.attn_k_norm.weight"].shape == (128,)


def test_lfm2_says_which_layers_attend(small):
    file = small("lfm2-1.2b")
    assert list(file.metadata["lfm2.attention.head_count_kv"]) == [0, 0, 2]
    assert file.metadata["lfm2.shortconv.l_cache"] == 3
    assert file.tensors["blk.0.shortconv.conv.weight"].shape == (256, 3)
    assert file.tensors["blk.0.shortconv.in_proj.weight"].shape == (768, 256)
    assert file.tensors["blk.2.attn_k_norm.weight"].shape == (64,)


def test_qwen35_is_what_packlight_runs(small):
    file = small("qwen3.5-4b", layers=4, delta=(4, 2, 64), head_dim=128)
    report = packlight.inspect(file.path)
    assert report["unsupported"] == []
    assert report["layers"] == "3 (deltanet + dense), (attention + dense)"
    assert file.tensors["blk.0.attn_qkv.weight"].shape == (512, 256)
    assert file.tensors["blk.3.attn_q.weight"].shape == (1024, 256)
    assert (read_tensor(file.tensors["blk.0.ssm_a"]).view(np.float32) < 0).all()
    assert file.tensors["blk.1.ssm_conv1d.weight"].format.name == "F32"
    assert file.metadata["qwen35.rope.dimension_sections"].tolist() == [11, 11, 10, 0]


def test_lfm2_mix_counts_the_layers_that_attend():
    shape = SHAPES["lfm2-1.2b"]
    formats = [shape_format("Q4_K_M", "attn_v", layer, shape) for layer in shape.attending]
    assert formats == ["Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K"]  # 6 // 8 = 0 first, 7 * 6 // 8 = 5 and on


def test_a_mixture_with_latent_attention_is_what_packlight_runs(small):
    file = small("glm-4.7-flash", latent=Latent(256, 256, 32, 96, 64), mixture=Mixture(6, 2, 256, shared=True))
    report = packlight.inspect(file.path)
    assert report["unsupported"] == []
    assert report["layers"] == "(mla + dense), 2 (mla + moe)"
    assert file.tensors["blk.1.attn_k_b.weight"].shape == (4, 256, 64)
    assert file.tensors["blk.2.ffn_down_exps.weight"].shape == (6, 256, 256)
    assert "blk.2.exp_probs_b.bias" in file.tensors
    kept = {name for name, tensor in file.tensors.items() if tensor.format.name == "Q5_0"}
    assert kept == {f"blk.{layer}.attn_{name}_b.weight" for layer in range(3) for name in "kv"}


def test_mamba2_is_what_packlight_runs(small):
    file = small("granite-4.0-h-micro", attending=(1,), mamba=Mamba(8, 2, 32, 16))
    report = packlight.inspect(file.path)
    assert report["unsupported"] == []
    assert report["layers"] == "(mamba2 + dense), (attention + dense), (mamba2 + dense)"
    assert file.tensors["blk.0.ssm_in.weight"].shape == (2 * 256 + 2 * 2 * 16 + 8, 256)
    assert file.tensors["blk.2.ssm_norm.weight"].shape == (2, 128)
    assert read_tensor(file.tensors["blk.0.ssm_a"]).view(np.float32).max() < 0  # memories fade


def test_seed_decides_the_bytes(tmp_path):
    a, b, c = (tmp_path / x for x in "abc")
    for path, seed in ((a, 1), (b, 1), (c, 2)):
        write(path, SMALL, "Q4_K_M", seed)
    assert a.read_bytes() == b.read_bytes()
    assert a.read_bytes() != c.read_bytes()
    one, two = (read_tensor(open_gguf(a).tensors[f"blk.{i}.attn_q.weight"]) for i in (0, 1))
    assert (one != two).any()


def test_chunks_do_not_repeat(monkeypatch, tmp_path):
    """A tensor longer than a chunk is fresh noise to its end."""
    monkeypatch.setattr("bench.synthetic.CHUNK_BYTES", 1 << 12)
    write(tmp_path / "m", SMALL, "Q4_K_M")
    rows = read_tensor(open_gguf(tmp_path / "m").tensors["token_embd.weight"]).reshape(320, -1)
    assert len(np.unique(rows, axis=0)) == 320


def test_use_more_bits_on_22_layers():
    # TinyLlama Q4_K_M as published: 22 // 8 = 2 first, 7 * 22 // 8 = 19 and on, and every third after 2 + 2
    assert [i for i in range(22) if more_bits(i, 22)] == [0, 1, 4, 7, 10, 13, 16, 19, 20, 21]


def test_q4_k_m_mix():
    shape = SHAPES["tinyllama-1.1b"]
    tensors = plan(shape, lambda base, layer: shape_format("Q4_K_M", base, layer, shape))
    assert collections.Counter(t.format.name for t in tensors) == {"Q4_K": 135, "Q6_K": 21, "F32": 45}
    by_name = {t.name: t.format.name for t in tensors}
    assert by_name["output.weight"] == "Q6_K"
    assert by_name["token_embd.weight"] == "Q4_K"
    assert by_name["blk.2.attn_v.weight"] == "Q4_K"
    assert by_name["blk.4.attn_v.weight"] == by_name["blk.4.ffn_down.weight"] == "Q6_K"
    # the published file has 668,788,096 bytes, 0.97 MB of them a vocabulary with merges
    assert 666e6 < sum(t.nbytes for t in tensors) < 668.8e6


@pytest.mark.parametrize(
    ("mix", "base", "layer", "expected"),
    [
        ("Q4_0", "output", -1, "Q6_K"),
        ("Q8_0", "output", -1, "Q8_0"),
        ("F16", "output", -1, "F16"),
        ("pure-Q4_0", "output", -1, "Q4_0"),
        ("Q4_K_M", "token_embd", -1, "Q4_K"),
        ("Q5_K_M", "ffn_down", 0, "Q6_K"),
        ("Q5_K_M", "ffn_down", 1, "Q5_K"),
        ("Q5_K_S", "ffn_down", 0, "Q5_K"),
        ("Q4_K_S", "attn_v", 3, "Q5_K"),
        ("Q4_K_S", "ffn_down", 1, "Q4_K"),
        ("Q3_K_M", "attn_v", 1, "Q5_K"),
        ("Q3_K_M", "ffn_down", 0, "Q4_K"),
        ("Q3_K_M", "attn_output", 0, "Q4_K"),
        ("Q2_K", "attn_v", 0, "Q4_K"),
        ("Q2_K", "attn_output", 0, "Q3_K"),
        ("Q2_K", "attn_q", 0, "Q2_K"),
    ],
)
def test_mixes(mix, base, layer, expected):
    assert shape_format(mix, base, layer, SMALL) == expected


def test_tied_embedding_takes_the_heads_format():
    assert shape_format("Q4_K_M", "token_embd", -1, SHAPES["llama-3.2-1b"]) == "Q6_K"


@pytest.mark.parametrize("count", [260, 320, 32000])
def test_vocabulary_encodes_any_text(count):
    tokens, scores, types = spm_tokens(count)
    assert len(tokens) == len(set(tokens)) == len(scores) == len(types) == count
    assert collections.Counter(types)[6] == 256
    assert tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    pieces = set(tokens[259:])
    # each longer piece is a join of two others, so merging pairs can reach it
    for piece in tokens[259:]:
        assert len(piece) == 1 or any(piece[:i] in pieces and piece[i:] in pieces for i in range(1, len(piece)))


def test_command_line(tmp_path):
    out = tmp_path / "m.gguf"
    flags = ["--layers=1", "--embed=256", "--ffn=512", "--heads=4", "--kv_heads=2", "--vocab=300", "--tied", "--biases"]
    command = [sys.executable, "-m", "packlight.bench.synthetic", "--mix=Q5_K_M", f"--out={out}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "bytes in" in done.stdout
    assert open_gguf(out).tensors["blk.0.attn_k.bias"].shape == (128,)
    assert "output.weight" not in open_gguf(out).tensors


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mix=Q4_K_X"], "unknown format 'Q4_K_X'"),
        (["--ffn=300"], "rows of 300 weights"),
        (["--vocab=100"], "vocabulary of 100 tokens"),
    ],
)
def test_command_line_errors_leave_nothing_behind(flags, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        main(["--layers=1", f"--out={tmp_path / 'm.gguf'}", *flags])
    assert e.value.code == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_write_llama_formats_and_omissions(tmp_path):
    path = write_llama(
        tmp_path / "m.gguf",
        embed=256,
        biases=True,
        formats={"default": "Q4_0", "attn_v": "Q6_K", "blk.1.attn_v": "Q2_0"},
        extra={"llama.context_length": 64, "x.list": ["a", "b"], "x.big": ("u64", 1 << 40)},
        omit=("blk.0.attn_norm.weight", "tokenizer.ggml.pre"),
        alignment=64,
    )
    file = open_gguf(path)
    assert file.alignment == 64
    assert file.metadata["llama.context_length"] == 64
    assert file.metadata["x.list"] == ["a", "b"]
    assert file.metadata["x.big"] == 1 << 40
    assert "tokenizer.ggml.pre" not in file.metadata
    assert "blk.0.attn_norm.weight" not in file.tensors
    got = {name: file.tensors[f"blk.{name}.weight"].format.name for name in ("0.attn_v", "1.attn_v", "0.ffn_up")}
    assert got == {"0.attn_v": "Q6_K", "1.attn_v": "Q2_0", "0.ffn_up": "Q4_0"}
    with pytest.raises(KeyError):
        write_llama(tmp_path / "n.gguf", omit=("blk.0.attn_nrom.weight",))


def test_our_writer_and_gguf_py_agree(tmp_path):
    """The same model by both writers: the same tensors at the same places, and gguf-py reads ours."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    shape = Shape(2, 64, 192, 4, 2, 320, 128)
    write(ours, shape, "pure-Q8_0")
    write_llama(theirs, extra={"general.name": "synthetic pure-Q8_0"})
    assert ours.read_bytes() == theirs.read_bytes()
    reader = gguf.GGUFReader(ours)
    assert [t.name for t in reader.tensors] == list(open_gguf(ours).tensors)
