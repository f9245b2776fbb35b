"""Which kernels a config gets on a machine: `auto` made definite, the layout they read, attention. Imports no jax."""

import dataclasses
from typing import Any

from packlight.compile.config import CompileConfig
from packlight.model.spec.config import MOSAIC_CACHES, MOSAIC_WIDTHS, ModelConfig
from packlight.quant.kernels import native_build


def settle(config: CompileConfig) -> tuple[CompileConfig, str | None]:
    """`config` with definite `cpu_kernels`, and a line for the user when `auto` could not be the native kernels.

    Builds the native library when it is asked for or may be used. Raises NativeBuildError when "native" was asked for
    by name and cannot be built.
    """
    if config.platform != "cpu" or config.cpu_kernels not in ("auto", "native"):
        return config, None
    if config.cpu_kernels == "auto" and config.activation_dtype != "float32":
        return dataclasses.replace(config, cpu_kernels="xla"), None
    try:
        native_build.loaded()
    except native_build.NativeBuildError as error:
        if config.cpu_kernels == "native":
            raise
        return dataclasses.replace(config, cpu_kernels="xla"), f"{error}; the xla kernels run instead, which are slower"
    return dataclasses.replace(config, cpu_kernels="native"), None


def expected(config: CompileConfig) -> CompileConfig:
    """What `settle` will most likely give, without building anything: for `inspect`."""
    if config.platform != "cpu" or config.cpu_kernels != "auto":
        return config
    native = config.activation_dtype == "float32" and native_build.has_compiler()
    return dataclasses.replace(config, cpu_kernels="native" if native else "xla")


def layout(config: CompileConfig) -> str:
    """The layout of packed matrices that a settled config's kernels read, where a format has one of its own."""
    match config.kernel_path:
        case "native":
            lanes = native_build.lanes()
            return "ggml" if lanes == 1 else f"rows{lanes}"
        case "mosaic_gpu":
            return "words"
        case "mosaic_tpu":
            return "columns"
        case _:
            return "ggml"


def attention(config: CompileConfig, cfg: ModelConfig, tokens: int, wgmma: bool) -> str:
    """The kernel of `model.network.mixers.attention.attention` for steps with `tokens` queries a row, under a settled
    config.

    wgmma: whether the device has the tensor-core instructions that "mosaic" is made of (`has_wgmma`).
    """
    match config.kernel_path:
        case "native" if cfg.plain_attention:
            return "native"
        case "mosaic_gpu" if tokens == 1:
            return "whole"
        case "mosaic_gpu" if wgmma and cfg.key_length in MOSAIC_WIDTHS and config.kv_dtype in MOSAIC_CACHES:
            return "mosaic"
        case _:
            return "tiled"


def attention_names(config: CompileConfig, cfg: ModelConfig, device: Any) -> str:
    """What the plan says of `attention`."""
    made_by_xla = {"whole": "xla", "tiled": "xla"}
    chosen = (attention(config, cfg, tokens, has_wgmma(device)) for tokens in (2, 1))
    prompts, single = (made_by_xla.get(kernel, kernel) for kernel in chosen)
    return prompts if prompts == single else f"{prompts} for prompts, {single} for single tokens"


def has_wgmma(device: Any) -> bool:
    """Whether a jax device is a Hopper GPU: those before have no such instructions, those after have others."""
    return device.platform == "gpu" and device.compute_capability == "9.0"
