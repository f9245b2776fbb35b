"""Which kernels a config gets on a machine: `auto` made definite, and the kernel of every tensor and of attention.

Imports no jax.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Any

from packlight.compile.config import CompileConfig
from packlight.model.spec.config import MOSAIC_CACHES, ModelConfig
from packlight.model.spec.parts.deltanet import DeltaNetPart
from packlight.model.spec.parts.mamba2 import Mamba2Part
from packlight.model.spec.parts.moe import MoePart
from packlight.model.spec.state import has_native_recurrence
from packlight.model.spec.weights import is_tied, used_weights
from packlight.quant.formats.table import FORMATS
from packlight.quant.kernels import native_build
from packlight.quant.layouts import FIELDS, SUPERBLOCKS


def build_kernels(config: CompileConfig) -> tuple[CompileConfig, str | None]:
    """`config` with definite `cpu_kernels`, and a line for the user when `auto` could not be the native kernels, or
    when these are not the package's own though it has some, or run from elsewhere than where they were built.

    Builds the native library when it is asked for or may be used, which takes seconds the first time. Raises
    NativeBuildError when "native" was asked for by name and cannot be built.
    """
    if config.platform != "cpu" or config.cpu_kernels not in ("auto", "native"):
        return config, None
    if config.cpu_kernels == "auto" and config.activation_dtype != "float32":
        return dataclasses.replace(config, cpu_kernels="xla"), None
    problem = native_build.packaged().problem
    try:
        library, _ = native_build.loaded()
    except native_build.NativeBuildError as error:
        reason = "; ".join(filter(None, (problem, str(error))))
        if config.cpu_kernels == "native":
            raise native_build.NativeBuildError(reason) from None
        warning = f"{reason}; the xla kernels run instead, which are slower"
        return dataclasses.replace(config, cpu_kernels="xla"), warning
    notes = (problem and f"{problem}; kernels built here run instead", library.note)
    return dataclasses.replace(config, cpu_kernels="native"), "; ".join(filter(None, notes)) or None


def expected(config: CompileConfig) -> CompileConfig:
    """What `build_kernels` will most likely give, without building anything: for `inspect`."""
    if config.platform != "cpu" or config.cpu_kernels != "auto":
        return config
    native = config.activation_dtype == "float32" and native_build.is_likely()
    return dataclasses.replace(config, cpu_kernels="native" if native else "xla")


def product_paths(path: str) -> dict[str, str]:
    """Format -> the kernel path of products with matrices of it, where a config asks for `path`.

    Native and Mosaic kernels are for the formats that have a layout for them; the rest take `xla`.
    """
    known = {"native": FIELDS, "mosaic_gpu": SUPERBLOCKS, "mosaic_tpu": SUPERBLOCKS}.get(path, FORMATS)
    return {qtype: path if qtype in known else "xla" for qtype in FORMATS}


@dataclasses.dataclass(frozen=True)
class KernelPlan:
    """Which kernel reads every tensor of a model, in which layout, and which computes attention and experts.

    Loader, memory plan, steps and reports all read it; nothing else decides.
    """

    path: str  # what the config asks for
    products: Mapping[str, str]  # format -> the kernel path of products, as `product_paths` gives it
    tensors: Mapping[str, str]  # tensor -> what reads it: a path; "gather", "gather+PATH" an embedding; "f32" a vector
    multiplied: Mapping[str, str]  # tensor that a product reads -> its format
    varying: tuple[str, ...]  # why a text's bits may depend on more than its tokens; () where they do not
    mosaic: bool  # Mosaic's attention has heads of this width and a cache of this type
    experts: str | None  # what runs a mixture's: "native", all in one call; "tiles", a loop; None: there are none

    @classmethod
    def of(cls, config: CompileConfig, cfg: ModelConfig, formats: Mapping[str, str]) -> "KernelPlan":
        """The plan under a config with definite kernels, of a model whose tensors have `formats`."""
        products = product_paths(config.kernel_path)
        used = used_weights(cfg, formats)
        tied = is_tied(used) and cfg.generates  # an encoder has no head
        tensors, multiplied = {}, {}
        for weight in used:
            for name in filter(formats.__contains__, weight.tensors):
                if weight.is_vector:
                    tensors[name] = "f32"
                    continue
                path, is_head = products[formats[name]], tied and weight.name == "token_embd"
                if weight.kind == "heads" and (path != "native" or len(weight.shape) == 2):
                    tensors[name] = "xla"  # a layer's are unpacked at once, whatever multiplies them
                    continue
                tensors[name] = path if not weight.looked_up else f"gather+{path}" if is_head else "gather"
                if is_head or not weight.looked_up:
                    multiplied[name] = formats[name]
        mosaic = cfg.mosaic_attention and config.kv_dtype in MOSAIC_CACHES
        by_xla = {formats[name] for name, by in tensors.items() if by == "xla"}
        varying = tuple(_varying(config.kernel_path, cfg, by_xla))
        loop = "native" if config.kernel_path == "native" else "tiles"
        experts = loop if any(isinstance(part, MoePart) for layer in cfg.layers for part in layer.parts) else None
        return cls(config.kernel_path, products, tensors, multiplied, varying, mosaic, experts)

    @cached_property
    def layout(self) -> str:
        """The layout of packed matrices that the path's kernels read. Native ones must have been built."""
        match self.path:
            case "native":
                lanes = native_build.lanes()
                return "ggml" if lanes == 1 else f"rows{lanes}"
            case "mosaic_gpu":
                return "words"
            case "mosaic_tpu":
                return "columns"
            case _:
                return "ggml"

    @cached_property
    def native(self) -> native_build.Running | None:
        """What runs as native kernels; None where the config asks for none."""
        return native_build.running() if self.path == "native" else None

    @cached_property
    def layouts(self) -> dict[str, str]:
        """Packed tensor -> the layout that it is kept in: ggml's where no product of the path reads it."""
        read = {name for name, qtype in self.multiplied.items() if self.products[qtype] == self.path}
        return {name: self.layout if name in read else "ggml" for name, by in self.tensors.items() if by != "f32"}

    def attention(self, tokens: int, wgmma: bool) -> str:
        """The kernel of `model.network.mixers.attention.attention` for steps with `tokens` queries a row.

        wgmma: whether the device has the tensor-core instructions that "mosaic" is made of (`has_wgmma`).
        """
        match self.path:
            case "native":
                return "native"
            case "mosaic_gpu" if tokens == 1:
                return "whole"
            case "mosaic_gpu" if wgmma and self.mosaic:
                return "mosaic"
            case _:
                return "tiled"

    @property
    def whole_texts(self) -> str:
        """The kernel of `model.network.mixers.attention.full.full_attention`."""
        return "native" if self.path == "native" else "blocked"

    def attention_names(self, device: Any) -> str:
        """What is said of `attention` on a jax device."""
        made_by_xla = {"whole": "xla", "tiled": "xla"}
        chosen = (self.attention(tokens, has_wgmma(device)) for tokens in (2, 1))
        prompts, single = (made_by_xla.get(kernel, kernel) for kernel in chosen)
        return prompts if prompts == single else f"{prompts} for prompts, {single} for single tokens"


def _varying(path: str, cfg: ModelConfig, by_xla: Collection[str]) -> Iterator[str]:
    """What adds up in an order that depends on a step's shape. by_xla: formats of matrices that XLA multiplies."""
    if path != "native":
        yield f"kernels are {path}"
        return
    if by_xla:
        yield f"XLA multiplies {', '.join(sorted(by_xla))}"
    parts = {part for layer in cfg.layers for part in layer.parts}
    widths = {part.width for part in parts if isinstance(part, DeltaNetPart | Mamba2Part)}
    for width in sorted(width for width in widths if not has_native_recurrence(width)):
        yield f"XLA runs recurrences with heads of {width} channels"


def has_wgmma(device: Any) -> bool:
    """Whether a jax device is a Hopper GPU: those before have no such instructions, those after have others."""
    return device.platform == "gpu" and device.compute_capability == "9.0"
