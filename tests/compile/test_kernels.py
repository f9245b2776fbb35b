"""Which kernels `auto` becomes, what is said when they are not the fast ones, and the layout weights are loaded in."""

import dataclasses
import types

import pytest
from ggufs import write_llama
from golden_models import model
from running import packlight, succeed, write_config

from packlight.compile.config import CompileConfig
from packlight.compile.kernels import KernelPlan, build_kernels, expected
from packlight.model.gguf.reader import open_gguf
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.weights import formats
from packlight.model.weights.load import read_weights
from packlight.model.weights.params import abstract
from packlight.quant.kernels import native_build
from packlight.quant.layouts import FIELDS, LANES, unpack


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    native_build.loaded.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    native_build.loaded.cache_clear()


def test_auto_is_native_for_float32_activations():
    config, warning = build_kernels(CompileConfig())
    assert (config.kernel_path, warning) == ("native", None)
    assert expected(CompileConfig()) == config
    config, warning = build_kernels(CompileConfig(activation_dtype="bfloat16"))
    assert (config.kernel_path, warning) == ("xla", None)
    for named in ("xla", "reference", "native"):
        assert build_kernels(CompileConfig(cpu_kernels=named))[0].kernel_path == named
    for platform in ("gpu", "tpu"):
        config, warning = build_kernels(CompileConfig(platform=platform))
        assert (config.kernel_path, warning) == (f"mosaic_{platform}", None)


def test_without_a_compiler_auto_is_xla_and_says_so(no_compiler):
    config, warning = build_kernels(CompileConfig())
    assert config.kernel_path == "xla"
    assert "CXX='no-such-compiler' is no program; the xla kernels run instead" in warning
    assert expected(CompileConfig()).kernel_path == "xla"
    with pytest.raises(native_build.NativeBuildError, match="no-such-compiler"):
        build_kernels(CompileConfig(cpu_kernels="native"))


def test_the_command_line_says_which_kernels_run_and_why(tmp_path):
    model = write_llama(tmp_path / "model.gguf", layers=1)
    flags = [f"--model={model}", "--prompt=ab", "--max_tokens=3", "--temperature=0"]
    broken = {"CXX": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = succeed(*flags, f"--config={write_config(tmp_path / 'auto.toml')}", **broken)
    assert "kernels xla" in done.stderr
    assert "no C++ compiler" in done.stderr
    compiler = tmp_path / "compiler"  # one that is there and fails
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] && exit\necho 'one.cc:1: error: no such vector' >&2\nexit 1\n")
    compiler.chmod(0o755)
    done = succeed(*flags, f"--config={tmp_path / 'auto.toml'}", **broken | {"CXX": str(compiler)})
    assert "kernels xla" in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "no such vector" in line)
    assert "failed: one.cc:1: error: no such vector; it is tried again in a day, or when " in line
    assert line.endswith(".failed is deleted; the xla kernels run instead, which are slower")
    done = packlight(*flags, f"--config={write_config(tmp_path / 'native.toml', cpu_kernels='native')}", **broken)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("error:") == 1
    assert "no C++ compiler" in done.stderr


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_loaded_in_the_layout_the_kernels_read(tmp_path, monkeypatch, tied):
    mix = {"default": "Q4_K", "token_embd": "Q6_K", "blk.1.attn_v": "Q6_K", "attn_k": "IQ3_S"}
    path = write_llama(tmp_path / "model.gguf", layers=2, embed=256, tied=tied, formats=mix)
    file = open_gguf(path)
    cfg = ModelConfig.from_gguf(file)
    plain = {w.weight.name: w for w in read_weights(file, cfg)}
    for name in ("rows8", "rows16"):
        monkeypatch.setattr(native_build, "lanes", lambda name=name: LANES[name])
        layouts = KernelPlan.of(CompileConfig(cpu_kernels="native"), cfg, formats(file)).layouts
        shapes = abstract(cfg, formats(file), layouts)
        for host in read_weights(file, cfg, layouts=layouts):
            for i, (qtype, at) in enumerate(zip(host.qtypes, host.layouts, strict=True)):
                twin = plain[host.weight.name].parts[0][i]
                if at == "ggml":
                    looked_up = host.weight.name == "token_embd" and not tied
                    assert host.weight.is_vector or qtype not in FIELDS or looked_up
                    assert (host.parts[0][i] == twin).all()
                    continue
                assert at == name
                rows = host.weight.shape[-2]
                packed, ggml = (b.reshape(-1, *b.shape[-3:]) for b in (host.parts[0][i], twin))
                for one, want in zip(packed, ggml, strict=True):
                    assert one.shape[0] == -(-rows // LANES[name])
                    assert (unpack(one, qtype, at, rows) == want).all()
            tree = shapes["blk"][host.weight.part] if host.weight.per_layer else shapes
            if not host.weight.is_vector:
                leaf = tree[host.weight.name]
                groups = leaf.groups if host.weight.per_layer else (leaf,)
                assert [g.blocks.shape for g in groups] == [b.shape for b in host.parts[0]]
                assert [g.layout for g in groups] == host.layouts


def test_which_attention_a_step_gets(tmp_path):
    """A GPU's kernel where it can be, XLA's elsewhere, and the plan names it."""

    def model(path, **sizes):
        return open_gguf(write_llama(tmp_path / path, layers=1, **sizes))

    files = model("wide.gguf", embed=256, heads=4), model("narrow.gguf", embed=320, heads=4)
    wide, narrow = map(ModelConfig.from_gguf, files)

    def plan(config, cfg):
        return KernelPlan.of(config, cfg, formats(files[0]))

    def attention(config, cfg, tokens, wgmma):
        return plan(config, cfg).attention(tokens, wgmma)

    assert (wide.key_length, narrow.key_length) == (64, 80)
    gpu = CompileConfig(platform="gpu", kv_dtype="bfloat16")
    assert [attention(gpu, wide, tokens, True) for tokens in (1, 2, 512)] == ["whole", "mosaic", "mosaic"]
    assert attention(gpu, narrow, 512, True) == "tiled"
    assert attention(gpu, wide, 512, False) == "tiled"
    assert attention(dataclasses.replace(gpu, kv_dtype="float32"), wide, 512, True) == "tiled"
    assert attention(CompileConfig(platform="tpu"), wide, 512, False) == "tiled"
    sliding = dataclasses.replace(wide, slides=(True,), sliding_window=16)
    assert attention(gpu, sliding, 512, True) == "mosaic"
    for path, kernel in (("native", "native"), ("xla", "tiled")):
        assert [attention(CompileConfig(cpu_kernels=path), cfg, 1, False) for cfg in (wide, sliding)] == [kernel] * 2

    def device(capability, platform="gpu"):
        return types.SimpleNamespace(platform=platform, compute_capability=capability)

    assert plan(gpu, wide).attention_names(device("9.0")) == "mosaic for prompts, xla for single tokens"
    assert plan(gpu, wide).attention_names(device("10.0")) == "xla"
    assert plan(gpu, narrow).attention_names(device("9.0")) == "xla"
    assert plan(CompileConfig(cpu_kernels="native"), wide).attention_names(device(None, "cpu")) == "native"


@pytest.mark.parametrize("tied", [False, True])
def test_every_tensor_is_in_the_plan_with_what_reads_it_and_its_layout(tmp_path, tied):
    mix = {"default": "Q4_K", "token_embd": "Q6_K", "attn_k": "IQ3_S"}
    file = open_gguf(write_llama(tmp_path / "model.gguf", layers=1, embed=256, tied=tied, formats=mix))
    cfg = ModelConfig.from_gguf(file)
    read = {"gpu": ("mosaic_gpu", "words"), "tpu": ("mosaic_tpu", "columns"), "cpu": ("xla", "ggml")}
    for platform, (path, layout) in read.items():
        kernels = "xla" if platform == "cpu" else "auto"
        plan = KernelPlan.of(CompileConfig(platform=platform, cpu_kernels=kernels), cfg, formats(file))
        assert plan.tensors.keys() == file.tensors.keys()
        assert plan.layouts.keys() == {name for name, info in file.tensors.items() if len(info.shape) > 1}
        for name, paths, kept in (
            ("blk.0.attn_q", path, layout),
            ("blk.0.attn_k", "xla", "ggml"),
            ("token_embd", f"gather+{path}" if tied else "gather", layout if tied else "ggml"),
        ):
            assert (plan.tensors[f"{name}.weight"], plan.layouts[f"{name}.weight"]) == (paths, kept)
        assert plan.tensors["output_norm.weight"] == "f32"


@pytest.mark.parametrize(("name", "mixture"), [("deepseek2-lite", True), ("llama", False)])
def test_a_mixtures_experts_are_in_the_plan(name, mixture, tmp_path):
    file = open_gguf(model(f"own/{name}", tmp_path))
    cfg = ModelConfig.from_gguf(file)
    for kernels, by in (("native", "native"), ("xla", "tiles"), ("reference", "tiles")):
        plan = KernelPlan.of(CompileConfig(cpu_kernels=kernels), cfg, formats(file))
        assert plan.experts == (by if mixture else None)


@pytest.mark.parametrize("name", ["deepseek2-flash", "deepseek2-lite"])
def test_the_matrices_of_heads_keep_the_files_layout_unless_a_kernel_reads_each(name, tmp_path):
    """The native kernels do, where a head's keys and values have matrices of their own."""
    file = open_gguf(model(f"own/{name}", tmp_path))
    cfg = ModelConfig.from_gguf(file)
    kinds = {key: "Q4_0" if kind == "F32" and "norm" not in key else kind for key, kind in formats(file).items()}
    for platform, kernels in (("cpu", "native"), ("cpu", "xla"), ("gpu", "auto"), ("tpu", "auto")):
        plan = KernelPlan.of(CompileConfig(platform=platform, cpu_kernels=kernels), cfg, kinds)
        of_heads = {key for key in plan.tensors if key.split(".")[-2] in ("attn_k_b", "attn_v_b", "attn_kv_b")}
        assert len(of_heads) == cfg.block_count * (2 if cfg.latent.split else 1)
        if kernels == "native" and cfg.latent.split:
            assert {plan.tensors[key] for key in of_heads} == {"native"}
            assert {plan.layouts[key] for key in of_heads} == {plan.layout}
        else:
            assert {plan.tensors[key] for key in of_heads} == {"xla"}
            assert {plan.layouts[key] for key in of_heads} == {"ggml"}
        assert plan.attention(16, wgmma=True) in ("native", "tiled")
