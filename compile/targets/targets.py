"""Compiling for hardware that is not there: names of targets, the compilers they need, the devices they stand for.

The compilers are in PyPI's libtpu and in jax's CUDA plugin, which the extras `tpu` and `cuda` install; jax asks them
for a topology whose devices can be compiled for, never run on. Imports jax only when it does that.
"""

import dataclasses
import importlib.metadata
import importlib.resources
import os
import pathlib
import re
from typing import Any

from packlight.common.errors import Argument, ConfigError
from packlight.compile.config import CompileConfig, default_config
from packlight.compile.targets.chips import CHIPS, Chip

# What each platform's compiler is installed as: their versions are what executables depend on.
DISTRIBUTIONS = {"gpu": ("jax-cuda13-plugin", "jax-cuda13-pjrt"), "tpu": ("libtpu",)}
# What XLA's CUDA compiler also needs, from a package or a CUDA toolkit: an assembler, and a library of functions. What
# they make runs wherever XLA's version fits, so that their own versions are no part of a stored executable's key.
ASSEMBLER, TOOLKIT_FILES = "nvidia-cuda-nvcc", ("bin/ptxas", "nvvm/libdevice/libdevice.10.bc")
TOOLKIT = "/usr/local/cuda"  # where XLA looks, beside the environment's CUDA_HOME
# Environment variables of the compilers. libtpu asks the cloud what machine this is, and complains where there is none,
# unless it is told, which does not matter to a topology asked for by name; as it takes no device here, other processes
# may load it too. XLA's CUDA compiler logs pages about constant folding that takes long; its errors are exceptions.
SETTINGS = {
    "gpu": {"TF_CPP_MIN_LOG_LEVEL": "3"},
    "tpu": {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    },
}
EXTRAS = {"gpu": "cuda", "tpu": "tpu"}
# What XLA is told of products of many rows for a GPU that is not here. They go to cuBLAS, which picks a kernel where it
# runs: XLA picks among its own by trying them on the GPU, and without it takes the first, with tiles of 8 x 16. Of few
# rows its own are better, as they unpack a weight inside the product.
BY_CUBLAS = {"xla_gpu_enable_triton_gemm": False}


@dataclasses.dataclass(frozen=True)
class Target:
    """What a target's name means: this machine's CPU (chip None), or a chip in a topology of its kind."""

    name: str
    platform: str
    chip: Chip | None = None
    topology: str = ""

    @property
    def said(self) -> Argument:
        """How messages name it."""
        return Argument("target", self.name)

    def config(self, named: CompileConfig | None) -> CompileConfig:
        """The config to compile: the named one, or the one that ships for the platform.

        Raises ConfigError when the named one is for another platform.
        """
        config = named or default_config(self.platform)
        if config.platform != self.platform:
            raise ConfigError(
                self.said,
                f" needs a config for platform {self.platform!r}; config key 'platform' is {config.platform!r}",
            )
        return config

    def check_compiler(self) -> None:
        """Raises ConfigError naming the extra to install when the compiler is not there. To be called before jax is
        imported, because the compilers get their settings then.
        """
        needed = DISTRIBUTIONS.get(self.platform, ())
        if self.platform == "gpu" and not has_toolkit():
            needed += (ASSEMBLER,)
        missing = [name for name in needed if _version(name) is None]
        if missing:
            raise ConfigError(
                *(self.said, f" needs {', '.join(missing)}, not installed here: "),
                f"pip install packlight[{EXTRAS[self.platform]}]",
            )
        for variable, value in SETTINGS.get(self.platform, {}).items():
            os.environ.setdefault(variable, value)


def has_toolkit() -> bool:
    """Whether there is a CUDA toolkit where XLA looks for one."""
    folders = map(pathlib.Path, filter(None, (os.environ.get("CUDA_HOME"), TOOLKIT)))
    return any(all((folder / name).is_file() for name in TOOLKIT_FILES) for folder in folders)


def parse(text: str) -> Target:
    """The target of that name: cpu, cuda:CHIP, tpu:CHIP or tpu:CHIP:TOPOLOGY. Raises ConfigError listing the known."""
    if text == "cpu":
        return Target(text, "cpu")
    kind, _, rest = text.partition(":")
    chip, _, topology = rest.partition(":")
    known = CHIPS.get(f"{kind}:{chip}")
    fits = re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", topology) if kind == "tpu" else not topology
    if known is None or (topology and not fits) or text.endswith(":"):
        names = ", ".join(name + (":TOPOLOGY" if name.startswith("tpu") else "") for name in CHIPS)
        said = f" is unknown; there are: cpu, {names} (such as tpu:v5e:2x2)"
        raise ConfigError(Argument("target", text), said)
    return Target(text, known.platform, known, topology or known.topology)


def devices(target: Target) -> list[Any]:
    """The devices of the target's topology, for which jax compiles but on which nothing runs.

    jax is told to look for no accelerators of this machine: plugins that are here only to compile would complain about
    what they lack to run. Raises ConfigError when the compiler is missing or does not know the topology.
    """
    target.check_compiler()
    assert target.chip is not None
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")
    try:
        if target.platform == "tpu":
            name, bounds = f"{_chip(target)}:{target.topology}", _host_bounds(target.topology)
            found = topologies.get_topology_desc(platform="tpu", topology_name=name, chips_per_host_bounds=bounds)
        else:
            text = (importlib.resources.files("packlight.configs") / f"{_chip(target)}.txtpb").read_text(
                encoding="utf-8"
            )
            options = {"topology": target.topology, "target_config": text}
            found = topologies.get_topology_desc(platform="cuda", topology_name=target.name, **options)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise ConfigError(target.said, f": {str(error).partition(chr(10))[0]}") from None
    return list(found.devices)


def compiler_options(device: Any, rows: int) -> dict[str, bool]:
    """Options that XLA gets for a step because the device is not here. rows: that its products with weights have.

    On the GPU itself XLA tries its products, cuBLAS's among them, and is told nothing. The options are no part of a
    stored executable's key, so that the GPU finds what was compiled elsewhere.
    """
    if device.platform != "gpu" or device.client.runtime_type != "compile_only_runtime":
        return {}
    from packlight.quant.kernels.mosaic_gpu import FEW_ROWS  # here, because it takes a third of a second

    return dict(BY_CUBLAS) if rows > FEW_ROWS else {}


def compiler_version(device: Any) -> list[str]:
    """What decides, beside jax, which executables can be loaded for a device: versions of its compiler.

    For a GPU or TPU those of the packages that hold XLA, the same on a machine that has the device and on one that
    compiles for it.
    """
    installed = [f"{name} {v}" for name in DISTRIBUTIONS.get(device.platform, ()) if (v := _version(name))]
    return installed or [device.client.platform_version]


def _host_bounds(topology: str) -> list[int]:
    """Chips of one host along x, y, z: a host has 2x2x1 of them, or all of a smaller topology."""
    sizes = [int(size) for size in topology.split("x")]
    return [min(size, most) for size, most in zip([*sizes, 1][:3], (2, 2, 1), strict=False)]


def _chip(target: Target) -> str:
    return target.name.split(":")[1]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
