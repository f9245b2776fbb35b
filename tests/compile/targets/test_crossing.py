"""What `compile --target` says without any other compiler: names, chips, least times, and weights found in programs."""

import json
import re
import types

import jax
import jax.numpy as jnp
import pytest
from ggufs import write_llama
from running import STEPS, succeed, write_config

from packlight.cli.tables import target_text
from packlight.common.errors import ConfigError
from packlight.compile import aot
from packlight.compile.config import PLATFORMS, CompileConfig, default_config
from packlight.compile.plan import Phase, StepKey
from packlight.compile.targets import targets
from packlight.compile.targets.chips import CHIPS, Roofline, roofline
from packlight.compile.targets.hlo import largest, materialized
from packlight.compile.targets.report import unpacked
from packlight.compile.targets.targets import parse
from packlight.compile.targets.traffic import step_bytes, step_flops
from packlight.model.gguf.reader import open_gguf
from packlight.model.spec.config import ModelConfig
from packlight.quant.matmul import matmul
from packlight.quant.qtensor import QTensor


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cuda",
        "cuda:",
        "cuda:h201",
        "cuda:h200:2",
        "tpu",
        "tpu:v9",
        "gpu:h200",
        "cpu:",
        "tpu:v5e:",
        "tpu:v5e:2",
        "tpu:v5e:axb",
    ],
)
def test_an_unknown_target_lists_the_known(text):
    with pytest.raises(ConfigError) as refused:
        parse(text)
    for name in ("cpu", *CHIPS):
        assert name in str(refused.value)
    assert f"target={text} " in str(refused.value)


def test_a_target_is_a_platform_a_chip_and_a_topology():
    assert (parse("cpu").platform, parse("cpu").chip) == ("cpu", None)
    assert parse("cuda:h100").chip is CHIPS["cuda:h100"]
    assert parse("tpu:v5e").topology == "1x1"
    assert parse("tpu:v5e:2x2").topology == "2x2"
    for name in CHIPS:
        assert parse(name).platform in PLATFORMS


def test_the_config_is_the_platforms_unless_it_contradicts():
    assert parse("tpu:v6e").config(None) == default_config("tpu")
    assert parse("cuda:h200").config(default_config("gpu")) == default_config("gpu")
    with pytest.raises(ConfigError, match="target=cuda:h200 needs .* 'gpu'; config key 'platform' is 'tpu'"):
        parse("cuda:h200").config(default_config("tpu"))


@pytest.mark.parametrize(("name", "extra"), [("cuda:h200", "cuda"), ("tpu:v5e", "tpu")])
def test_a_missing_compiler_names_the_extra(name, extra, monkeypatch):
    monkeypatch.setattr(targets, "_version", lambda _: None)
    with pytest.raises(ConfigError, match=rf"target={name} needs .*pip install packlight\[{extra}\]"):
        targets.devices(parse(name))
    monkeypatch.setattr(targets, "_version", lambda _: "1.0")
    for variable in (v for settings in targets.SETTINGS.values() for v in settings):
        monkeypatch.setenv(variable, "0")  # and so as it was after the test
    parse(name).check_compiler()


def test_a_toolkit_does_for_the_package(monkeypatch, tmp_path):
    for variable in targets.SETTINGS["gpu"]:
        monkeypatch.setenv(variable, "0")  # and so as it was after the test
    monkeypatch.setattr(targets, "_version", lambda name: None if name == "nvidia-cuda-nvcc" else "1.0")
    monkeypatch.setattr(targets, "TOOLKIT", str(tmp_path / "none"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    target = parse("cuda:h100")
    with pytest.raises(ConfigError, match="target=cuda:h100 needs nvidia-cuda-nvcc, not installed here"):
        target.check_compiler()
    for name in targets.TOOLKIT_FILES:
        with pytest.raises(ConfigError, match="nvidia-cuda-nvcc"):
            target.check_compiler()
        (tmp_path / "cuda" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cuda" / name).touch()
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    target.check_compiler()
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setattr(targets, "TOOLKIT", str(tmp_path / "cuda"))
    target.check_compiler()


def test_what_a_key_holds_of_a_gpus_compiler(monkeypatch):
    """XLA's own version, which a machine with the GPU has too; not that of an assembler, which may be a toolkit's."""
    there = {"jax-cuda13-plugin": "0.10.2", "jax-cuda13-pjrt": "0.10.2", "nvidia-cuda-nvcc": "13.0.48"}
    monkeypatch.setattr(targets, "_version", there.get)
    gpu = types.SimpleNamespace(platform="gpu")
    first = targets.compiler_version(gpu)
    del there["nvidia-cuda-nvcc"]
    assert targets.compiler_version(gpu) == first
    there["jax-cuda13-pjrt"] = "0.10.3"
    assert targets.compiler_version(gpu) != first


def test_only_many_rows_for_a_gpu_that_is_not_here_get_options():
    """XLA tries its products where it has the device; the config's options come first."""

    def options(platform, runtime_type, key, **told):
        device = types.SimpleNamespace(platform=platform, client=types.SimpleNamespace(runtime_type=runtime_type))
        return aot.xla_options(CompileConfig(**told), device, key)

    name, absent = "xla_gpu_enable_triton_gemm", "compile_only_runtime"
    many, few = StepKey(Phase.PREFILL, 16, 128), StepKey(Phase.DECODE, 8, 128)
    assert options("gpu", absent, many) == options("gpu", absent, StepKey(Phase.ENCODE, 1, 16)) == {name: False}
    assert options("gpu", absent, few) == options("gpu", "pjrt_ifrt", many) == options("tpu", absent, many) == {}
    assert options("gpu", absent, many, xla_options=((name, True),)) == {name: True}
    assert aot.xla_options(CompileConfig(), jax.devices("cpu")[0], many) == {}


def test_a_gpu_to_which_layers_are_copied_begins_all_of_one_at_a_time():
    """Whether it is here or not, as the one finds what was compiled for the other."""
    config = CompileConfig(platform="gpu", weights="streamed")
    for runtime in ("compile_only_runtime", "pjrt_ifrt"):
        device = types.SimpleNamespace(platform="gpu", client=types.SimpleNamespace(runtime_type=runtime))
        assert aot.xla_options(config, device, StepKey(Phase.DECODE, 1, 128)) == aot.ALL_AT_A_TIME


def test_roofline_by_hand():
    """H200: 4.8 GB take 1 ms; 989.5 GFLOP take 1 ms."""
    chip = CHIPS["cuda:h200"]
    assert roofline(chip, 4.8e9, 1e9) == Roofline(1e-3, "memory")
    assert roofline(chip, 1e6, 2 * 989.5e9) == Roofline(2e-3, "compute")
    assert roofline(chip, 4.8e9, 1e9, copied=128e6) == Roofline(2e-3, "host link")
    assert roofline(CHIPS["tpu:v5e"], 819e6, 1e9, copied=1e12) == Roofline(1e-3, "memory")  # whose link is not known


def test_what_a_step_must_read_and_do(tmp_path):
    """One layer, 64 wide, 4 heads and 2 kv heads of 16, ffn 192, 320 tokens, all Q8_0: 34 bytes for 32 weights."""
    file = open_gguf(write_llama(tmp_path / "m.gguf", layers=1))
    cfg = ModelConfig.from_gguf(file)
    layer = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 192
    head, norms = 320 * 64, 3 * 64 * 4
    kv = 2 * 2 * 16 * 2  # k and v, kv heads, head size, bfloat16
    decode = StepKey(Phase.DECODE, 3, 128)
    assert step_bytes(decode, file, cfg, "bfloat16") == (layer + head + 3 * 64) * 34 / 32 + norms + 3 * 128 * kv
    assert step_flops(decode, file, cfg) == 3 * (2 * (layer + head) + 4 * 4 * 16 * 128)
    prefill = StepKey(Phase.PREFILL, 16, 128)
    assert step_bytes(prefill, file, cfg, "bfloat16") == (layer + 16 * 64) * 34 / 32 + norms + 128 * kv
    seen = sum(range(113, 129))  # the chunk ends the cache
    assert step_flops(prefill, file, cfg) == 16 * 2 * layer + 4 * 4 * 16 * seen
    assert step_bytes(StepKey(Phase.HEAD, 8), file, cfg, "bfloat16") == head * 34 / 32
    assert step_flops(StepKey(Phase.HEAD, 8), file, cfg) == 8 * 2 * head


@pytest.mark.parametrize("rows", [1, 640])
def test_a_weight_unpacked_whole_is_found(rows):
    """`reference` unpacks a matrix of 640 x 512 whole; `xla` does tiles. As many rows as columns confuse nobody."""
    w = QTensor(jax.ShapeDtypeStruct((640, 2, 144), jnp.uint8), "Q4_K")
    x = jax.ShapeDtypeStruct((rows, 512), jnp.float32)

    def found(path):
        return materialized(jax.jit(lambda x, w: matmul(x, w, path)).lower(x, w).compile().as_text())

    (((qtype, out, width, _), size),) = found("reference").items()
    assert (qtype, out, width, size) == ("Q4_K", 640, 512, 4 * 640 * 512)
    assert found("xla") == {}


def test_it_is_named_after_the_part_of_the_model(tmp_path):
    """attn_q and attn_output, both (64, 64), are in one part; a head of that shape is in another."""
    file = open_gguf(write_llama(tmp_path / "m.gguf", layers=1, vocab=320))
    cfg = ModelConfig.from_gguf(file)

    def line(op_name, dims, layout="{1,0}"):
        instruction = f'  %f = {dims}{layout} fusion(%p), calls=%c, metadata={{op_name="{op_name}"}}'
        return f"ENTRY %m (p: u8[2]) -> f32[2] {{\n{instruction}\n}}\n"

    inside = "jit(prefill)/while/body/{}/while/body/unpack_Q8_0_{}/mul"
    assert unpacked(line(inside.format("attention", "64x64"), "f32[64,64]"), file, cfg) == {
        "attn_q|attn_output": 4 * 64 * 64
    }
    assert unpacked(line(inside.format("ffn", "192x64"), "(s32[], bf16[192,2,32])"), file, cfg) == {
        "ffn_gate|ffn_up": 2 * 64 * 192
    }
    assert unpacked(line("jit(head)/head/unpack_Q8_0_320x64/mul", "f32[320,64]"), file, cfg) == {"output": 4 * 64 * 320}
    assert unpacked(line(inside.format("ffn", "192x64"), "f32[96,64]"), file, cfg) == {}  # a tile
    assert unpacked(line(inside.format("ffn", "192x64"), "f32[192,64]", "{1,0:T(8,128)S(1)}"), file, cfg) == {}  # VMEM
    assert unpacked(line("jit(prefill)/embed/unpack/mul", "f32[320,64]"), file, cfg) == {}  # rows of the embedding


def test_the_largest_array_in_scratch():
    """A TPU fills up tiles: of 4 x 200 bfloat16, 200 minor-most, 8 x 256 are kept; the cache is written in place."""
    text = """%fused (p: f32[9,9]) -> f32[9,9] {
  %i = f32[900,900]{1,0} add(%p, %p)
}
ENTRY %m (p: bf16[9]) -> bf16[9] {
  %p = f32[800,800]{1,0} parameter(0)
  %c = bf16[3,4,200]{2,1,0:T(8,128)(2,1)} copy(%p), metadata={op_name="jit(decode)/copied"}
  %v = f32[700,700]{1,0:T(8,128)S(1)} copy(%p)
  %f = (s32[2], /*index=1*/f32[20,100]{0,1}) fusion(%p), kind=kLoop, calls=%fused
  ROOT %u = bf16[100,100]{1,0:T(8,128)(2,1)} dynamic-update-slice(%p, %c)
}
"""
    array = largest(text, 100_000)
    assert array is not None
    assert (array.bytes, array.shape, array.opcode) == (3 * 8 * 256 * 2, "bf16[3,4,200]", "copy")
    assert array.op_name == "jit(decode)/copied"
    plain = largest(text, 12_000)
    assert plain is not None
    assert (plain.bytes, plain.shape, plain.opcode) == (20 * 100 * 4, "f32[20,100]", "fusion")
    assert largest(text, 7) is None


def test_compiling_for_the_cpu_here(tmp_path):
    model = write_llama(tmp_path / "m.gguf", layers=1)
    config = write_config(tmp_path / "c.toml", context=32, cpu_kernels="reference", cache_dir=str(tmp_path / "store"))
    done = succeed("compile", f"--model={model}", f"--config={config}", "--target=cpu", "--json")
    report = json.loads(done.stdout)
    rows = report["executables"]
    assert (len(rows), report["compile"]["misses"], report["target"]["name"]) == (STEPS, STEPS, "cpu")
    by_phase = {row["step"].split("[")[0]: row for row in rows}
    assert by_phase["head"]["unpacked"] == {"output": 4 * 320 * 64}
    assert by_phase["prefill"]["unpacked"].keys() >= {"ffn_down", "ffn_gate|ffn_up"}
    for row in rows:
        assert row["fits"]
        assert row["roofline_s"] is None
        assert row["needs_bytes"] >= row["argument_bytes"] + row["scratch_bytes"]
    again = succeed("compile", f"--model={model}", f"--config={config}", "--target=cpu")
    assert re.search(r"^head\[1\] .* yes +output \(0.1 MB\) +f32\[320,", again.stdout, re.MULTILINE)
    assert again.stdout == target_text(
        [row | {"hit": True, "seconds": s} for row, s in zip(rows, seconds(again.stdout), strict=True)]
    )


def seconds(table):
    return [float(re.split(r"  +", line)[1]) for line in table.splitlines()[1:]]
