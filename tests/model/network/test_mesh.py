"""One model on meshes of 1 to 8 fake devices: the same ids, logits within DESIGN's invariance rule, parts of the right
size, two collectives a layer, and only a device's own bytes read."""

import concurrent.futures
import dataclasses
import json
import os
import re
import socket

import jax
import numpy as np
import pytest
from families import GOLDENS
from ggufs import write_llama
from golden_models import OWN, gelu_table, golden, model, shared
from running import packlight as command
from running import succeed, write_config
from tiers import product, tiered

import packlight
from packlight.compile import aot
from packlight.compile.config import MeshShape
from packlight.compile.plan import Phase
from packlight.model.gguf.reader import open_gguf
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.sharding import TENSOR, Branch, Cut, Piece, Split, cut, make_split
from packlight.model.spec.state import Room
from packlight.model.spec.weight import Segment, Weight
from packlight.model.spec.weights import check, formats
from packlight.model.weights.load import read_weights
from packlight.model.weights.params import abstract, place
from packlight.model.weights.placement import Placement
from packlight.perplexity import log_softmax
from packlight.prepared import prepare
from packlight.quant.formats.table import FORMATS
from packlight.quant.layouts import FIELDS, unpack

IDS = np.random.default_rng(3).integers(3, 250, 21).tolist()
# An activation that lies at a tie of int8 to within float32's rounding, as one of a third of texts does, is a step
# apart where devices add up in another order. Which texts have one depends on the CPU's instructions, so there are
# several.
TEXTS = [np.random.default_rng(seed).integers(3, 300, 21).tolist() for seed in range(6)]
CONFIG = packlight.CompileConfig(prefill_buckets=(16,), decode_batch=(4,), head_rows=16)


def on(path, data, tensor, **changes):
    mesh = MeshShape(data, tensor)
    return packlight.load(path, dataclasses.replace(CONFIG, mesh=mesh, **changes))


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    """Every part divides by 8: 8 kv heads, 8 blocks of the heads and of the feed-forward part."""
    folder = tmp_path_factory.mktemp("mesh")
    return write_llama(
        folder / "m.gguf", layers=2, embed=256, heads=16, kv_heads=8, head_dim=128, ffn=2048, vocab=512,
        formats={"default": "Q4_K", "attn_v": "Q6_K", "blk.1.attn_v": "Q5_0"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(divided):
    """One device, for each kind of kernels."""
    return {kernels: on(divided, 1, 1, cpu_kernels=kernels) for kernels in ("xla", "native")}


def tieless(llm, one):
    """A text whose logits differ by float32's rounding alone, and those of one device. A fault moves every text's."""
    for text in TEXTS:
        expected = one.logits(text)
        if np.abs(llm.logits(text) - expected).max() <= 1e-4 * expected.std():
            return text, expected
    pytest.fail("the logits of every text differ by more than rounding")


@pytest.mark.parametrize(("data", "tensor", "kernels"), [(1, 8, "native"), (2, 4, "xla")])
def test_a_mesh_says_what_one_device_says(divided, alone, data, tensor, kernels):
    """Three prompts in slots of both groups; the cache keeps its parts from step to step."""
    llm = on(divided, data, tensor, cpu_kernels=kernels)
    text, expected = tieless(llm, alone[kernels])
    ids = alone[kernels].generate(text, max_tokens=6, temperature=0).token_ids
    before = llm.engine._cache.state["attention"].k.sharding
    several = llm.generate([text, text[:9], text], max_tokens=6, temperature=0)
    assert several[0].token_ids == several[2].token_ids == ids
    scored = llm.generate(text, prompt_logprobs=1, max_tokens=0).prompt_logprobs
    logp = log_softmax(expected)[np.arange(len(text) - 1), text[1:]]
    # A log-probability is a logit less the logarithm of a sum: each is off by what a logit is.
    assert np.abs([each.logprob for each in scored[1:]] - logp).max() <= 2e-4 * expected.std()
    cache = llm.engine._cache
    k, v = cache.state["attention"]
    assert k.sharding == v.sharding == before
    assert before.shard_shape(k.shape)[1:3] == (4 // data, 8 // tensor)
    assert cache.length.sharding.is_equivalent_to(llm.placement.sharding(jax.sharding.PartitionSpec("data")), 1)


@pytest.mark.parametrize(("data", "tensor"), [product(1, 2), product(1, 4), (4, 1)])
def test_logits_do_not_depend_on_the_mesh(divided, alone, data, tensor):
    expected = alone["xla"].logits(TEXTS[0])
    assert np.abs(logits_alone(divided, TEXTS[0], data, tensor) - expected).max() <= 1e-4 * expected.std()


@pytest.mark.product
@pytest.mark.parametrize("kv_dtype", ["q8_0", "q4_0"])
def test_scales_are_shared_as_their_heads_are(divided, alone, kv_dtype):
    """Of 8 kv heads on 8 devices.

    Sums in another order differ by 2^-20 of a number, 2^-13 of a step of its block. So of 8,000 numbers one becomes its
    neighbour, by a whole step, where all are rounded by 0.29 steps (RMS): 0.04 of what rounding does to logits. In 4
    bits a step is 16 times as large, and fewer numbers cross one.
    """
    one, eight = (on(divided, 1, tensor, kv_dtype=kv_dtype, cpu_kernels="xla").logits(TEXTS[0]) for tensor in (1, 8))
    rounding = np.sqrt(np.mean((one - alone["xla"].logits(TEXTS[0])) ** 2))
    assert rounding > 1e-4 * one.std()  # the key has an effect
    assert np.sqrt(np.mean((eight - one) ** 2)) <= 0.15 * rounding


# Every branch of the split: experts, some padding, sinks, fused and biased matrices, norms over all heads, windows, one
# block a row.
BRANCHES = ("llama", "llama-gqa", "llama-moe", "gpt-oss", "olmo2", "phi3", "starcoder2", "gemma3", "qwen3moe", "lfm2")
BRANCHES += ("lfm2moe", "deepseek2-lite", "gemma4-e", "gemma4-moe")
# What goes with heads: gates of channels and of heads, norms of each head, biases of a fused matrix; and of the head.
HEADS = ("afmoe", "laguna", "stablelm-12b", "glm4", "phi2")
PARTS = (
    "llama-moe",
    "phi3",
    "olmo2",
    "gpt-oss",
    "starcoder2",
    "llama-lowbit",
    "lfm2-taps",
    "mellum",
    "qwen35",
    "granitehybrid-dense",
    *HEADS,
    "gemma4-e",
)
EIGHT = tiered(OWN, [f"own/{name}" for name in BRANCHES])


def logits_alone(path, ids, data, tensor):
    """Logits through a prefill and a head step only, which is all that is compiled."""
    config = dataclasses.replace(CONFIG, mesh=MeshShape(data, tensor), cpu_kernels="xla", decode_batch=(data,))
    prepared = prepare(path, config)
    planned = dataclasses.replace(prepared.plan, decode_batch=(), head_rows=(16,), scores=False)
    return packlight.LLM(dataclasses.replace(prepared, planned=planned)).logits(ids)


def equals_llama_cpp(name, folder, monkeypatch, tensor):
    """DESIGN, Numerics: the bound that holds for one device, and the greedy ids read off one teacher-forced pass."""
    told = golden(name, folder)
    if told.rounded_gelu:
        gelu_table(monkeypatch)
    logits = logits_alone(told.path, told.ids + told.greedy[:-1], 1, tensor)
    assert np.abs(told.picked(logits) - told.logits).max() <= 1e-3 * told.logits.std()
    assert logits[len(told.ids) - 1 :].argmax(-1).tolist() == told.greedy


@pytest.mark.parametrize(
    ("name", "data", "tensor"), [("deepseek2", 1, 2), ("deepseek2-lite", 2, 2), ("mistral4", 1, 4)]
)
def test_latents_are_on_every_device_and_heads_on_one(name, data, tensor, tmp_path):
    told = golden(f"own/{name}", tmp_path)
    logits = logits_alone(told.path, told.ids + told.greedy[:-1], data, tensor)
    assert np.abs(told.picked(logits) - told.logits).max() <= 1e-3 * told.logits.std()
    _, cfg, used, split = split_of(told.path, tensor)
    assert split.heads
    (latent,) = cfg.latent.state(cfg, cfg.block_count, Room(4, 256, 16, "float32"))
    assert split.axes(latent) == (None, "data", None, None, None)
    of_heads = [weight for weight in used if weight.kind == "heads"]
    assert len(of_heads) == (2 if cfg.latent.split else 1)
    assert all(split.part(weight).shape[0] == weight.shape[0] // tensor for weight in of_heads)


@pytest.mark.parametrize(
    ("name", "tensor", "own"),
    [("qwen35", 2, True), ("qwen3next-joined", 2, True), ("qwen3next", 4, False), ("qwen35-packed", 4, False)],
)
def test_a_delta_net_is_shared_by_key_heads_where_its_blocks_divide(name, tensor, own, tmp_path):
    told = golden(f"own/{name}", tmp_path)
    split = split_of(told.path, tensor)[-1]
    assert split.groups == own
    assert ("all heads that remember on every device" in str(split)) != own
    logits = logits_alone(told.path, told.ids, 1, tensor)
    assert np.abs(told.picked(logits) - told.logits).max() <= 1e-3 * told.logits.std()


@pytest.mark.parametrize("name", [*EIGHT, *shared(name for name in GOLDENS if name.startswith("arch/"))])
def test_eight_devices_equal_llama_cpp(name, tmp_path, monkeypatch):
    """Most files have fewer heads than devices."""
    equals_llama_cpp(name, tmp_path, monkeypatch, 8)


@pytest.mark.parametrize("name", tiered(OWN, [f"own/{name}" for name in HEADS]))
def test_two_devices_with_their_own_heads_equal_llama_cpp(name, tmp_path, monkeypatch):
    equals_llama_cpp(name, tmp_path, monkeypatch, 2)


@pytest.mark.parametrize(
    ("name", "data", "tensor", "own"),
    [
        ("granitehybrid", 1, 4, True),  # one group, whose norm four devices sum
        ("granitehybrid-dense", 2, 4, True),  # two groups, on two devices each
        ("nemotron_h", 1, 2, True),  # a group each
        ("nemotron_h", 1, 4, False),  # six heads
        ("falcon-h1-normed", 1, 4, True),  # beside attention
        ("mamba2", 1, 8, False),
    ],
)
def test_devices_share_mamba2s_heads_or_compute_all(name, data, tensor, own, tmp_path):
    told = golden(f"own/{name}", tmp_path)
    _, cfg, _, split = split_of(told.path, tensor)
    assert split.groups == own
    assert ("all heads that remember on every device" in str(split)) != own
    state = cfg.mamba2.state(cfg, cfg.block_count, Room(4, 256, 16, "float32"))
    assert split.axes(state.memory)[2] == (TENSOR if own else None)
    logits = logits_alone(told.path, told.ids + told.greedy[:-1], data, tensor)
    assert np.abs(told.picked(logits) - told.logits).max() <= 1e-3 * told.logits.std()
    assert logits[len(told.ids) - 1 :].argmax(-1).tolist() == told.greedy


def split_of(path, tensor):
    file = open_gguf(path)
    cfg = ModelConfig.from_gguf(file)
    used = check(file, cfg)
    return file, cfg, used, make_split(cfg, used, formats(file), 1, tensor)


def split(tensor, heads, attention, ffn):
    """Each branch by how it is closed, its inputs, and those of a device."""
    return Split(1, tensor, heads, (Branch("H", "attn_output", *attention), Branch("F", "ffn_down", *ffn)))


def test_what_does_not_divide_is_gathered_or_padded(tmp_path):
    """One block a row: nothing can be cut along inputs. TinyLlama's 22 blocks: 24 on 8 devices. 3 kv heads: all."""
    shape = {"layers": 1, "embed": 256, "heads": 8, "vocab": 300, "formats": {"default": "Q4_K"}}
    one_block = write_llama(tmp_path / "one.gguf", kv_heads=4, ffn=256, **shape)
    assert split_of(one_block, 8)[-1] == split(8, True, ("rows", 256, 32), ("rows", 256, 32))
    tiny = write_llama(tmp_path / "tiny.gguf", kv_heads=4, head_dim=256, ffn=5632, **shape)
    assert split_of(tiny, 8)[-1] == split(8, True, ("inputs", 2048, 256), ("inputs", 5632, 3 * 256))
    assert split_of(tiny, 2)[-1] == split(2, True, ("inputs", 2048, 4 * 256), ("inputs", 5632, 11 * 256))
    odd = write_llama(tmp_path / "odd.gguf", kv_heads=3, ffn=1024, **(shape | {"heads": 6, "head_dim": 128}))
    assert split_of(odd, 4)[-1] == split(4, False, ("rows", 768, 768), ("inputs", 1024, 256))


def test_a_weight_is_cut_as_its_row_says(divided):
    """One that no model has: heads and two halves of features in one matrix, and a bias of it."""
    _, cfg, _, split = split_of(divided, 8)
    segments = (Segment("H", 16 * 4), Segment("F", 2048), Segment("F", 2048))
    matrix = Weight("mixed", (64 + 4096, 256), "rows", segments)
    bias = Weight("mixed.bias", matrix.shape[:-1], matrix.cut, matrix.segments, "bias")
    for weight in (matrix, bias):
        pieces = (Piece(0, 3 * 8, 8), Piece(8, 64 + 3 * 256, 256), Piece(264, 64 + 2048 + 3 * 256, 256))
        assert cut(split, weight, 3) == Cut("rows", 8 + 512, pieces)
        assert split.part(weight).shape == (520, *weight.shape[1:])
    with pytest.raises(AssertionError):
        Weight("mixed", (64 + 4096, 256), "rows", segments[:2])


@pytest.mark.parametrize("tensor", [2, 3, 8])
@pytest.mark.parametrize("layout", ["ggml", "rows8"])
@pytest.mark.parametrize("name", PARTS)
def test_the_parts_make_the_whole(name, layout, tensor, tmp_path):
    """Every row, block and expert is on a device, in its place; kv heads may be on several; the rest is zeros."""
    file, cfg, used, split = split_of(model(f"own/{name}", tmp_path), tensor)
    whole = {(host.weight.part, host.weight.name): host for host in read_weights(file, cfg)}
    declared = {(weight.part, weight.name): weight for weight in used}
    for host in read_weights(file, cfg, layouts=layouts_of(file, layout), split=split, devices=range(tensor)):
        key = host.weight.part, host.weight.name
        weight = declared[key]
        if not host.axis:
            assert set(host.parts) == {0}
            continue
        covered = set()
        for device, buffers in host.parts.items():
            share = cut(split, weight, device)
            for group, (qtype, at) in enumerate(zip(host.qtypes, host.layouts, strict=True)):
                ours, expected = plain(host.weight, buffers[group], qtype, at), whole[key].parts[0][group]
                lead = ours.ndim - len(weight.shape) - (not weight.is_vector)
                axis = lead + weight.position(host.axis)
                unit = FORMATS[qtype].elements if host.axis == "inputs" else 1
                ours, expected = np.moveaxis(ours, axis, 0), np.moveaxis(expected, axis, 0)
                rest = np.ones(len(ours), bool)
                for to, start, length in share.pieces:
                    to, start, length = to // unit, start // unit, length // unit
                    np.testing.assert_array_equal(ours[to : to + length], expected[start : start + length])
                    covered |= {(group, i) for i in range(start, start + length)}
                    rest[to : to + length] = False
                assert not ours[rest].any()
        assert len(covered) == sum(np.moveaxis(b, axis, 0).shape[0] for b in whole[key].parts[0]), weight.name


def layouts_of(file, layout):
    """Every matrix whose format has that layout is in it."""
    return {name: layout for name, qtype in formats(file).items() if layout == "ggml" or qtype in FIELDS}


def plain(weight, buffer, qtype, layout):
    """A part's blocks in ggml's layout."""
    if layout == "ggml":
        return buffer
    flat = buffer.reshape(-1, *buffer.shape[-3:])
    rows = np.stack([unpack(one, qtype, layout, weight.shape[-2]) for one in flat])
    return rows.reshape(*buffer.shape[:-3], *rows.shape[1:])


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("layout", ["ggml", "rows8"])
def test_a_part_of_the_wrong_shape_is_not_placed(divided, layout, tensor):
    """The last device's part of one weight, without its last row or its last blocks."""
    file, cfg, _, split = split_of(divided, tensor)
    for axis in (-3, -2):
        host = read_weights(file, cfg, layouts=layouts_of(file, layout), split=split, devices=range(tensor))
        buffers = next(each for each in host if each.weight.name == "attn_q").parts[tensor - 1]
        buffers[0] = np.delete(buffers[0], -1, axis)
        with pytest.raises(ValueError, match=f"in layout {layout}: .* do not hold {2048 // tensor} x 256 weights"):
            place(host, Placement.on(jax.devices(), split))


def test_a_device_reads_its_own_bytes(divided, monkeypatch):
    """Counted where the file is read: an eighth of every matrix that is cut, all of each vector."""
    file, cfg, used, split = split_of(divided, 8)
    matrices = sum(file.tensors[n].nbytes for w in used if not w.is_vector for n in w.tensors)
    vectors = sum(file.tensors[n].nbytes for w in used if w.is_vector for n in w.tensors)
    read, preadv = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: read.append(preadv(*args)) or read[-1])
    read_weights(file, cfg, split=split, devices=[3])
    assert sum(read) == matrices // 8 + vectors
    read.clear()
    read_weights(file, cfg, split=split, devices=range(8))
    assert sum(read) == matrices + vectors


@pytest.mark.parametrize("device", [0, 7])
def test_a_bad_scale_is_named_by_its_place_in_the_tensor(divided, tmp_path, device):
    """The first block of the last row's part that the device holds."""
    file, cfg, _, split = split_of(divided, 8)
    info = file.tensors["blk.1.ffn_down.weight"]
    rows, blocks, size = info.blocks_shape
    block = (rows - 1) * blocks + device
    raw = bytearray(divided.read_bytes())
    raw[info.offset + block * size : info.offset + block * size + 2] = b"\x00\x7c"
    (tmp_path / "bad.gguf").write_bytes(raw)
    bad = open_gguf(tmp_path / "bad.gguf")
    with pytest.raises(packlight.GGUFError, match=rf"'blk.1.ffn_down.weight': block {block} has a scale"):
        read_weights(bad, cfg, split=split, devices=[device])
    read_weights(bad, cfg, split=split, devices=[device ^ 1])


def test_two_collectives_a_layer_and_an_eighth_of_the_weights(divided):
    """The compiled decode step: a sum ends each of a layer's two branches (in the loop over layers), one sum makes the
    embeddings and one gather the logits; a device's arguments are its eighth, and the norms.
    """
    config = dataclasses.replace(CONFIG, mesh=MeshShape(1, 8), cpu_kernels="xla")
    prepared = prepare(divided, config)
    plan = dataclasses.replace(prepared.plan, prefill_buckets=(), head_rows=())
    placement = aot.find_devices(config, prepared.split)
    params = abstract(prepared.model, formats(prepared.file), placement=placement)
    steps = dataclasses.replace(prepared, planned=plan).steps(placement)
    (built,) = (each for key, each in aot.build(steps, params).built.items() if key.phase is Phase.DECODE)
    text = built.call.as_text()
    sums, gathers = (len(re.findall(rf" {name}(?:-start)?\(", text)) for name in ("all-reduce", "all-gather"))
    assert (sums, gathers) == (2 + 1, 1)

    packed = [x for x in jax.tree.leaves(params) if x.dtype == np.uint8]
    norms = [x for x in jax.tree.leaves(params) if x.dtype == np.float32]
    for x in packed:
        assert np.prod(x.sharding.shard_shape(x.shape)) * 8 == x.size
    for x in norms:
        assert x.sharding.shard_shape(x.shape) == x.shape
    assert sum(x.size for x in packed) == sum(i.nbytes for i in prepared.file.tensors.values() if len(i.shape) > 1)
    held = sum(x.size for x in packed) // 8 + sum(x.size * 4 for x in norms) + steps.cache_shape.device_bytes
    assert 0 <= built.argument_bytes - held < 300_000  # tokens, and tables of sampling


@pytest.mark.product
def test_two_processes_write_what_one_does(tmp_path, divided):
    """2 processes x 2 devices on loopback; the first writes the text, the other nothing."""
    config = write_config(tmp_path / "c.toml", cpu_kernels="native", **{"mesh.tensor": 4})
    flags = [f"--model={divided}", f"--config={config}", "--prompt=ab", "--max_tokens=6", "--temperature=0", "--json"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    group = [f"--coordinator={address}", "--num_processes=2"]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        each = pool.map(lambda i: command(*flags, *group, f"--process_id={i}", own_process=True), range(2))
        first, second = each
    assert (first.returncode, second.returncode) == (0, 0), (first.stderr, second.stderr)
    assert second.stdout == ""
    assert "mesh data 1, tensor 4" in first.stderr
    assert json.loads(first.stdout)["token_ids"] == json.loads(succeed(*flags).stdout)["token_ids"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--process_id=1"], "--process_id goes with --coordinator, which is missing"),
        (["--coordinator=x:1", "--num_processes=2", "--process_id=2"], "--process_id=2 is outside 0..1"),
        (
            ["--coordinator=x:1", "--num_processes=3", "--process_id=0"],
            "--num_processes=3 does not divide the 4 devices",
        ),
    ],
)
def test_processes_that_do_not_fit_are_refused(tmp_path, divided, flags, message):
    config = write_config(tmp_path / "c.toml", **{"mesh.tensor": 4})
    given = (f"--model={divided}", f"--config={config}", "--prompt=ab", "--temperature=0", *flags)
    done = command(*given, own_process=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
