"""`compile --target` with the real compilers of GPUs and TPUs, on a machine without either: `make test-targets`.

What needs the device itself, two processes of which one compiles and the other only loads, waits for a GPU.
"""

import dataclasses
import functools
import json
import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from ggufs import write_llama
from golden_models import model
from running import STEPS, packlight, succeed, write_config

import packlight as api
from packlight.compile import aot
from packlight.compile.config import MeshShape, default_config
from packlight.compile.memory import Limit
from packlight.compile.store import Store
from packlight.compile.targets import report, targets
from packlight.compile.targets.chips import CHIPS
from packlight.compile.targets.hlo import materialized
from packlight.model.spec.sharding import WHOLE
from packlight.model.spec.state import QUANTIZED
from packlight.model.spec.weights import formats
from packlight.model.weights.params import abstract
from packlight.model.weights.placement import Placement
from packlight.quant.formats.table import FORMATS
from packlight.quant.matmul import matmul
from packlight.quant.qtensor import QTensor

pytestmark = pytest.mark.targets

NAMES = ("cuda:h100", "cuda:h200", "tpu:v5e:2x2", "tpu:v6e")
Q4_K = {"default": "Q4_K"}
BFLOAT16 = {"kv_dtype": "bfloat16", "activation_dtype": "bfloat16"}


@functools.cache
def device(name):
    return targets.devices(targets.parse(name))[0]


def prefill_and_head(prepared):
    """The same with a plan without the sampler, which takes most of the time to compile."""
    plan = dataclasses.replace(prepared.plan, decode_batch=(), head_rows=(8,), scores=False, slots=1)
    return dataclasses.replace(prepared, planned=plan)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Matrices of 65,536 weights and more, in Q4_K and Q6_K as Q4_K_M has them."""
    formats = {"default": "Q4_K", "output": "Q6_K", "blk.1.ffn_down": "Q6_K", "blk.1.attn_v": "Q6_K"}
    folder = tmp_path_factory.mktemp("model")
    return write_llama(folder / "m.gguf", layers=2, embed=256, heads=4, kv_heads=2, vocab=512, formats=formats)


def test_the_devices_are_named_as_the_real_ones_are():
    """The store's key holds these names, so an entry made here is found there."""
    for name in NAMES:
        found, target = device(name), targets.parse(name)
        assert (found.platform, found.device_kind, found.id) == (
            target.platform,
            target.chip.device_kind,
            0,
        )


@pytest.mark.parametrize("name", NAMES)
def test_steps_compile_serialize_and_keep_weights_packed(name, path, tmp_path):
    target = targets.parse(name)
    config = dataclasses.replace(
        *(default_config(target.platform),),
        context=64,
        prefill_buckets=(16,),
        head_rows=8,
        cache_dir=str(tmp_path / "s"),
    )
    prepared = prefill_and_head(api.prepare(path, config))
    cfg, file, plan = prepared.model, prepared.file, prepared.plan
    placement = Placement.on([device(name)])
    params = abstract(cfg, formats(file), prepared.kernels.layouts, placement)
    executables = aot.build(prepared.steps(placement), params, load=False)
    assert executables.warnings == ()
    assert len(list(Store(config.store_dir).folder.glob("*.aot"))) == len(plan.steps) == 2
    memory = prepared.memory
    rows = [
        report.target_row(b, target, file, cfg, config.kv_dtype, WHOLE, memory, Limit(10**9, "x"))
        for b in executables.built.values()
    ]
    for row in rows:
        assert row["unpacked"] == {}
        assert row["fits"]
        assert row["roofline_s"] > 0
        assert row["scratch_bytes"] < 30e6
    prefill = next(row for row in rows if row["step"].startswith("prefill"))
    head = math.prod(params["output"].blocks.shape) + 4 * cfg.embedding_length  # and its norm
    packed = memory.weights - head + memory.cache
    if target.platform == "gpu":
        arrays = len(jax.tree.leaves(params)) + 7  # the cache, tokens and places
        assert packed <= prefill["argument_bytes"] <= packed + 256 * arrays  # pieces of 256 bytes
        assert prefill["flops"] is None
    else:
        assert prefill["argument_bytes"] >= packed  # a TPU pads what it keeps
        assert prefill["flops"] > 0


KINDS = ("lfm2moe", "deepseek2", "deepseek2-lite", "qwen35", "granitehybrid", "gemma4-e", "afmoe")


@pytest.mark.parametrize("name", ["cuda:h200", "tpu:v6e"])
@pytest.mark.parametrize(
    ("kind", "kv_dtype"), [*((kind, "bfloat16") for kind in KINDS), *(("gemma2", each) for each in QUANTIZED)]
)
def test_every_kind_of_layer_compiles(kind, kv_dtype, name, tmp_path):
    """A chunk and a single token, through each mixer and each feed-forward part; nothing is unpacked whole.

    One after the other: once in some hundred compilations the TPU's compiler crashed beside another one.
    """
    target, file = targets.parse(name), model(f"own/{kind}", tmp_path)
    config = dataclasses.replace(default_config(target.platform), context=64, prefill_buckets=(1, 16), head_rows=1)
    prepared = api.prepare(file, dataclasses.replace(config, kv_dtype=kv_dtype, cache_dir=str(tmp_path / "s")))
    placement = Placement.on([device(name)])
    params = abstract(prepared.model, formats(prepared.file), prepared.kernels.layouts, placement)
    for tokens in (1, 16):
        one = {"prefill_buckets": (tokens,), "decode_batch": (), "head_rows": (), "slots": 1}
        plan = dataclasses.replace(prepared.plan, **one)
        steps = dataclasses.replace(prepared, planned=plan).steps(placement)
        executables = aot.build(steps, params, load=False)
        assert executables.warnings == ()
        (built,) = executables.built.values()
        # measured: at most 0.6 MB on a GPU beside the 4 MB that cuBLAS has to work in, where it multiplies, and 4.2 MB
        # on a TPU, which pads each array to tiles of 8 x 128
        cublas = 4 << 20 if built.xla_options else 0
        assert built.scratch_bytes < (1e6 + cublas if target.platform == "gpu" else 8e6), built.key


@pytest.mark.parametrize("name", ["cuda:h200", "tpu:v6e"])
@pytest.mark.parametrize(
    ("kind", "kv_dtype"),
    [("gemma2", "bfloat16"), ("gemma2", "q4_0"), ("deepseek2", "bfloat16"), ("qwen35", "bfloat16")],
)
def test_a_copy_between_slots_is_in_place(kind, kv_dtype, name, tmp_path):
    """Beside the cache a tile of each array at most."""
    config = default_config(targets.parse(name).platform)
    config = dataclasses.replace(config, context=512, kv_dtype=kv_dtype, store=False)
    prepared = api.prepare(model(f"own/{kind}", tmp_path), config)
    plan = dataclasses.replace(prepared.plan, prefill_buckets=(), decode_batch=(), head_rows=())
    placement = Placement.on([device(name)])
    params = abstract(prepared.model, formats(prepared.file), prepared.kernels.layouts, placement)
    steps = dataclasses.replace(prepared, planned=plan).steps(placement)
    (built,) = aot.build(steps, params, load=False).built.values()
    assert built.scratch_bytes < steps.cache_shape.device_bytes / 8


@pytest.mark.parametrize("tensor", [2, 4])
def test_a_mesh_of_chips_shares_the_weights(tensor, tmp_path):
    """A branch of a layer ends in one sum, and so does the look-up of embeddings that devices share."""
    path = write_llama(
        tmp_path / "m.gguf", layers=2, embed=1024, heads=16, kv_heads=8, ffn=1024, vocab=512, formats=Q4_K
    )
    target = targets.parse("tpu:v5e:2x2")
    mesh = MeshShape(1, tensor)
    config = dataclasses.replace(default_config("tpu"), context=64, mesh=mesh, cache_dir=str(tmp_path / "s"))
    prepared = prefill_and_head(api.prepare(path, config))
    placement = aot.place_on(targets.devices(target), prepared.split, target.name)
    params = abstract(prepared.model, formats(prepared.file), prepared.kernels.layouts, placement)
    executables = aot.build(prepared.steps(placement), params, load=False)
    assert executables.warnings == ()
    prefill = executables.built[prepared.plan.steps[0]]
    text = prefill.call.as_text()
    sums = re.findall(r" all-reduce(?:-start)?\(", text)
    assert len(sums) == 2 + 1  # the body of the loop over layers, and before it
    assert not re.search(r" all-gather(?:-start)?\(", text)
    whole = api.prepare(path, dataclasses.replace(config, mesh=MeshShape())).memory
    norms = 4 * 1024 * (2 * 2 + 1)
    assert prepared.memory.weights == (whole.weights - norms) / tensor + norms


def test_a_mesh_that_the_topology_has_no_devices_for_is_an_error(path, tmp_path):
    config = write_config(tmp_path / "c.toml", platform="tpu", context=64, **BFLOAT16)
    config.write_text(config.read_text() + "mesh = {tensor = 8}\n")
    done = packlight("compile", f"--model={path}", f"--config={config}", "--target=tpu:v5e:2x2")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "error: config key 'mesh' needs 8 devices; --target=tpu:v5e:2x2 has 4"


def test_another_target_is_another_entry(path):
    digests, prepared = set(), api.prepare(path, default_config("gpu"))
    for name in NAMES:
        placement = Placement.on([device(name)])
        params = abstract(prepared.model, formats(prepared.file), prepared.kernels.layouts, placement)
        digests.add(aot.entry_digest(prepared.steps(placement), prepared.plan.steps[0], params))
    assert len(digests) == len(NAMES)


@pytest.mark.parametrize("name", ["cuda:h200", "tpu:v5e"])
def test_the_command_compiles_every_step(name, path, tmp_path):
    target = targets.parse(name)
    config = write_config(
        tmp_path / "c.toml", platform=target.platform, context=64, cache_dir=str(tmp_path / "store"), **BFLOAT16
    )
    command = ("compile", f"--model={path}", f"--config={config}", f"--target={name}", "--json")
    done = succeed(*command, own_process=True)  # whose compilations are counted
    result = json.loads(done.stdout)
    assert result["compile"] == {"hits": 0, "misses": STEPS, "compiled": STEPS}
    assert result["target"]["chip"]["device_kind"] == target.chip.device_kind
    assert result["memory"]["limit_bytes"] == target.chip.memory
    phases = [row["step"].split("[")[0] for row in result["executables"]]
    assert phases == ["prefill", "head", "score", "decode", "copy"]
    assert all(row["unpacked"] == {} and row["fits"] for row in result["executables"])
    assert len(list((tmp_path / "store").glob("*.aot"))) == STEPS
    assert done.stderr.splitlines()[0].startswith("memory: weights ")
    attention = {"gpu": "mosaic for prompts, xla for single tokens", "tpu": "xla"}[target.platform]
    assert result["attention"] == attention
    rest = [line for line in done.stderr.splitlines() if not line.startswith(("memory", "compile: "))]
    prefill, *others = result["executables"]
    many = {"gpu": {"xla_gpu_enable_triton_gemm": False}, "tpu": {}}[target.platform]
    assert prefill["xla_options"] == many
    assert all(row["xla_options"] == {} for row in others)  # of 1 and 2 rows
    said = [f"XLA's option xla_gpu_enable_triton_gemm = false: {prefill['step']}"] if many else []
    assert rest == [f"{target.chip.device_kind}: attention {attention}", *said], done.stderr


def test_what_cannot_fit_the_chip_is_refused_before_compiling(path, tmp_path):
    """A cache of 2^20 slots."""
    config = write_config(tmp_path / "c.toml", platform="tpu", context=64, decode_batch=[1 << 20], **BFLOAT16)
    done = packlight("compile", f"--model={path}", f"--config={config}", "--target=tpu:v5e")
    assert (done.returncode, done.stdout) == (2, "")
    assert "does not fit: weights " in done.stderr
    assert "16,000.0 MB (TPU v5 lite by its datasheet)" in done.stderr


def test_an_impossible_topology_is_one_line(path):
    done = packlight("compile", f"--model={path}", "--target=tpu:v5e:3x7")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: --target=tpu:v5e:3x7: INVALID_ARGUMENT: Topology")


@functools.cache
def product(name, qtype, path, rows=8, out=2048, width=1024):
    """Scratch bytes of a matrix product on packed weights, and which of them it unpacks whole."""
    placed = jax.sharding.SingleDeviceSharding(device(name))
    fmt = FORMATS[qtype]
    w = QTensor(jax.ShapeDtypeStruct((out, width // fmt.elements, fmt.bytes), jnp.uint8, sharding=placed), qtype)
    x = jax.ShapeDtypeStruct((rows, width), jnp.bfloat16, sharding=placed)
    program = jax.jit(lambda x, w: matmul(x, w, path)).lower(x, w).compile()
    return program.memory_analysis().temp_size_in_bytes, materialized(program.as_text())


def test_the_gpu_unpacks_whole_where_it_is_told_to_and_that_is_found():
    """`reference` on an H200 writes the weights as bfloat16; the `xla` path a quarter of them at a time."""
    scratch, found = product("cuda:h200", "Q4_K", "reference")
    (((qtype, out, width, _), size),) = found.items()
    assert (qtype, out, width, size) == ("Q4_K", 2048, 1024, 2 * 2048 * 1024)
    assert scratch >= size
    scratch, found = product("cuda:h200", "Q4_K", "xla")
    assert found == {}
    assert scratch < size


@pytest.mark.parametrize("qtype", ["Q4_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "MXFP4", "BF16"])
def test_a_tpu_needs_no_scratch_for_a_weight(qtype):
    scratch, found = product("tpu:v5e", qtype, "xla")
    assert found == {}
    assert scratch < 2 * 2048 * 1024


@functools.cache
def gpu_kind():
    """The kind of the GPU that is here, or None: asked of another process, as this one is told to see CPUs only."""
    code = "import jax; print(jax.devices('gpu')[0].device_kind)"
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def test_one_process_compiles_without_the_gpu_and_another_runs_without_compiling(path, tmp_path):
    """R20 across machines."""
    kind = gpu_kind()
    name = next((n for n, chip in CHIPS.items() if chip.platform == "gpu" and chip.device_kind == kind), None)
    if name is None:
        pytest.skip(f"needs one of {', '.join(n for n in CHIPS if n.startswith('cuda'))}; jax finds {kind or 'no GPU'}")
    config = write_config(
        tmp_path / "c.toml", platform="gpu", context=64, cache_dir=str(tmp_path / "store"), **BFLOAT16
    )
    arguments = (f"--model={path}", f"--config={config}")
    succeed("compile", *arguments, f"--target={name}", CUDA_VISIBLE_DEVICES="")
    ran = succeed("generate", *arguments, "--prompt=ab", "--max_tokens=8", "--temperature=0", "--json")
    result = json.loads(ran.stdout)
    assert result["compile"] == {"hits": STEPS, "misses": 0, "compiled": 0}
    assert len(result["token_ids"]) == 8 or result["finish_reason"] == "stop"
