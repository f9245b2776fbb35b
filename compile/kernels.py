"""Which kernels a config gets on this machine: `auto` made definite, and the layout they read. Imports no jax."""

import dataclasses

from compile.config import CompileConfig
from quant import native_build


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
