"""The memory plan: what a model needs on its device, said and checked before anything is loaded. Imports no jax.

Weights and cache follow from the file and the config; scratch is known once executables are. Where the model lies in
the host's memory, the process itself counts too. What a CPU has free is what the system and its control groups say, for
other devices their own statistics.
"""

import bisect
import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from packlight.common.errors import Argument, MemoryLimitError
from packlight.common.text import megabytes
from packlight.compile.config import CompileConfig
from packlight.compile.plan import Plan
from packlight.model.gguf.reader import GGUFFile
from packlight.model.spec.cache import CacheShape
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.sharding import Split
from packlight.model.spec.state import CACHE_TILE
from packlight.model.spec.weights import check
from packlight.model.weights.pinned import Pinned
from packlight.model.weights.residence import Residence

CGROUPS = pathlib.Path("/sys/fs/cgroup")
PROC = pathlib.Path("/proc")

# What a process takes on a CPU beside the model, measured (`bench/LOG.md`): Python, jax and the executables of a plan,
# which are larger where XLA samples, and the tokenizer for each token of its vocabulary. A start that compiles takes up
# to 300 MB more while it does.
PROCESS_BYTES, SAMPLER_BYTES = 200_000_000, 80_000_000
TOKEN_BYTES = 400


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each device."""

    weights: int
    cache: int
    scratch: int | None = None  # the most that any step needs beside weights and cache; None: not known yet
    process: int = 0  # each device's share of what Python, jax and the executables take, where that is the same memory
    shape: CacheShape | None = None  # of the cache
    prefixes: int = 0  # what the prefix cache may take at most, where that is the same memory
    mapped: int = 0  # weights beside `weights`, in a file that the system takes back pages of, or in the host's memory
    residence: Residence | Pinned | None = None  # which weights are in memory, where they are streamed
    mappable: bool = False  # whether all but few of `weights` could be such pages instead
    draft: int = 0  # weights and cache of a draft model

    @property
    def held(self) -> int:
        """Weights and cache."""
        streamed = self.residence.resident_bytes if self.residence is not None else 0
        return self.weights + streamed + self.cache

    @property
    def total(self) -> int:
        return self.held + (self._scratch or 0) + self.process + self.prefixes + self.draft

    @property
    def _scratch(self) -> int | None:
        """What is known of it: layers on their way to a device are part of it."""
        if not isinstance(self.residence, Pinned):
            return self.scratch
        return max(self.scratch or 0, self.residence.ring_bytes)

    def __str__(self) -> str:
        where = self.residence
        parts = {
            "streamed weights": where and where.resident_bytes,
            "vectors" if self.mapped else "weights": self.weights,
            "cache": self.cache,
            "scratch": self._scratch,
            "process": self.process or None,
            "prefix cache": self.prefixes or None,
            "draft model": self.draft or None,
        }
        known = (f"{name} {megabytes(count)}" for name, count in parts.items() if count is not None)
        how = f"streamed: {where}" if where is not None else "mapped"
        mapped = f"weights {megabytes(self.mapped)} {how}; " if self.mapped else ""
        return f"{mapped}{' + '.join(known)} = {megabytes(self.total)}"

    def advice(self, limit: int) -> tuple[str | Argument, ...]:
        """Which context, or how many slots, would fit into `limit` bytes with everything else as it is: the parts of a
        message.
        """
        smaller = ("take a smaller file", *((", or ", Argument("weights", "mapped")) if self.mappable else ()))
        if self.shape is None:
            return smaller
        shape, room, left = self.shape, self.shape.room, limit - (self.total - self.cache)

        def most(name: str, unit: int) -> int:
            """The most of a field of `Room` that fits, in whole units."""

            def too_large(count: int) -> bool:
                smaller = room._replace(**{name: count * unit})
                return dataclasses.replace(shape, room=smaller).device_bytes > left

            return unit * (bisect.bisect_left(range(1, getattr(room, name) // unit), True, key=too_large))

        context, slots = most("capacity", CACHE_TILE), most("slots", shape.split.data)
        ways = [Argument(name, count) for name, count in (("context", context), ("slots", slots)) if count]
        match ways:
            case [one, other]:
                return one, " or ", other, " would fit"
            case [one]:
                return one, " would fit"
        return "no context would fit: ", *smaller


@dataclasses.dataclass(frozen=True)
class Limit:
    """Bytes that a device leaves us, and who says so."""

    bytes: int
    source: str

    def __str__(self) -> str:
        return f"{megabytes(self.bytes)} ({self.source})"

    def check(self, plan: MemoryPlan, name: str) -> None:
        """Raises MemoryLimitError with the numbers when the plan of the model `name` does not fit."""
        if plan.total > self.bytes:
            said = f"{name} does not fit: {plan}, but there are {self}; "
            raise MemoryLimitError(said, *plan.advice(self.bytes))


def plan_memory(
    file: GGUFFile, cfg: ModelConfig, layouts: Mapping[str, str], split: Split, plan: Plan, config: CompileConfig
) -> MemoryPlan:
    """Weights as they lie in each device's memory, or in a file, under `KernelPlan.layouts`, the cache of its slots,
    and on a CPU the process, of which the devices are parts.
    """
    vectors = matrices = 0
    for weight in check(file, cfg):
        part = split.part(weight)
        for name in weight.tensors:
            if weight.is_vector:
                vectors += 4 * math.prod(part.shape)
            else:
                matrices += math.prod(part.blocks_shape(file.tensors[name].format.name, layouts[name]))
    shape = plan.cache(cfg, config.kv_dtype, split)
    whole = PROCESS_BYTES + TOKEN_BYTES * cfg.vocab_size + (SAMPLER_BYTES if config.cpu_kernels != "native" else 0)
    process = whole // split.devices if config.platform == "cpu" else 0
    prefixes = config.prefix_cache_bytes if config.platform == "cpu" and cfg.generates else 0
    known = shape if cfg.generates else None
    mapped = matrices if config.weights != "resident" else 0
    weights, mappable = vectors + matrices - mapped, config.on_one_cpu and not mapped
    return MemoryPlan(weights, shape.device_bytes, None, process, known, prefixes, mapped, mappable=mappable)


def prefix_budget(left: int) -> int:
    """What a server lets its prefix cache take of the host's memory that the model leaves: a quarter, 2 GiB at most."""
    return max(0, min(2 << 30, left // 4))


def config_limit(config: CompileConfig) -> Limit | None:
    """The limit that a config sets, or None."""
    return Limit(config.memory_limit, "config key 'memory_limit'") if config.memory_limit else None


def device_limit(devices: Sequence[Any]) -> Limit | None:
    """What the fullest of some GPUs or TPUs has free by its own statistics, or None where they keep none."""
    found = []
    for device in devices:
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            found.append(Limit(stats["bytes_limit"] - stats.get("bytes_in_use", 0), f"free on {device.device_kind}"))
    return min(found, key=lambda limit: limit.bytes, default=None)


def host_limit(devices: int = 1) -> Limit | None:
    """What this machine has free for each of some virtual devices: the least of the system's memory and of its control
    groups, or None if unknown.
    """
    share = "" if devices == 1 else f" / {devices} devices"
    known = ((_system(), "free memory"), (_cgroup(), "memory cgroup"))
    found = [Limit(free // devices, source + share) for free, source in known if free]
    return min(found, key=lambda limit: limit.bytes, default=None)


def _system() -> int | None:
    """MemAvailable on Linux, elsewhere all memory."""
    try:
        for line in (PROC / "meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None


def _cgroup() -> int | None:
    """What the tightest control group of this process leaves: limit - (usage - file cache that can be dropped).

    That is all file cache, as in MemAvailable: pages of mapped weights, ours or others', count as active.
    Source: the kernel's Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, and si_mem_available().
    """
    try:
        lines = (PROC / "self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUPS / "memory" if controllers else CGROUPS
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                left.append(_left(folder, *names))
    return min((each for each in left if each is not None), default=None)


def _left(folder: pathlib.Path, limit_name: str, usage_name: str) -> int | None:
    """What one control group leaves, or None where it sets no limit."""
    try:
        limit = int((folder / limit_name).read_text(encoding="ascii"))
        usage = int((folder / usage_name).read_text(encoding="ascii"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):  # no such group, or "max"
        return None
    lists = ("active_file", "inactive_file")
    cached = sum(int(stat.get(f"total_{name}", stat.get(name, 0))) for name in lists)
    return max(1, limit - max(0, usage - cached))
