"""Ahead-of-time compilation: every step of a plan lowered, compiled or loaded from the store, and reported.

Serving calls only what is built here. A step that is not in the plan is a KeyError at the caller, never a jit.
"""

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from packlight.common.errors import ConfigError, MemoryLimitError
from packlight.common.text import reason, shown
from packlight.compile.config import CompileConfig
from packlight.compile.origin import code_hash, host_features, origin, python_version
from packlight.compile.plan import StepKey
from packlight.compile.steps import Steps
from packlight.compile.store import EntryError, Store
from packlight.compile.targets.targets import compiler_options, compiler_version
from packlight.model.spec.sharding import WHOLE, Split
from packlight.model.weights.params import Params
from packlight.model.weights.placement import Device, Placement
from packlight.quant.kernels import native_ops

# XLA's scheduler for GPUs lets one copy that a kernel makes run beside the others' work, of as many matrices as a layer
# has it would begin one when the last has ended.
ALL_AT_A_TIME = {"xla_gpu_experimental_parallel_async_compute_limit": 16}


@dataclasses.dataclass(frozen=True)
class Built:
    """One executable and how it came to be. All bytes are of one device."""

    key: StepKey
    call: Callable[..., Any]
    warnings: tuple[str, ...]  # what a user should know of its way into the store or out of it
    xla_options: Mapping[str, Any]  # with which it is compiled here
    hit: bool  # it came from the store
    seconds: float  # that it took
    argument_bytes: int
    output_bytes: int
    new_bytes: int  # of outputs that reuse no argument
    scratch_bytes: int
    flops: float | None  # by XLA's estimate, which counts a loop's body once; None where it gives none
    bytes_accessed: float | None  # by the same estimate


@dataclasses.dataclass(frozen=True)
class Executables:
    """Everything a plan needs, by step; `warnings` are lines a user should see."""

    built: Mapping[StepKey, Built]
    warnings: tuple[str, ...]

    def __getitem__(self, key: StepKey) -> Callable[..., Any]:
        if key not in self.built:
            raise KeyError(f"{key} is not in the plan; it has {', '.join(map(str, self.built))}")
        return self.built[key].call

    @property
    def hits(self) -> int:
        return sum(b.hit for b in self.built.values())

    @property
    def misses(self) -> int:
        return len(self.built) - self.hits

    @property
    def scratch_bytes(self) -> int:
        """What steps need beside weights and cache, one step at a time."""
        return max(b.scratch_bytes + b.new_bytes for b in self.built.values())


def find_devices(config: CompileConfig, split: Split = WHOLE) -> Placement:
    """The first devices of the platform that the config asks for, as many as the split wants. A CPU is made to show
    that many, if jax has not looked at it yet. Raises ConfigError when they are not there.
    """
    wanted = split.devices
    if config.platform == "cpu" and wanted > 1 and not jax.distributed.is_initialized():
        with contextlib.suppress(RuntimeError):  # jax has looked
            seen: int = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
            jax.config.update("jax_num_cpu_devices", max(wanted, seen))
    found = sorted({d.platform for d in _devices()})
    try:
        devices = jax.devices(config.platform)
    except RuntimeError:
        raise ConfigError(f"config key 'platform' is {config.platform!r}; jax finds only: {', '.join(found)}") from None
    return place_on(devices, split, config.platform)


def place_on(devices: list[Device], split: Split, whose: str) -> Placement:
    """The first of some devices, as many as the split wants. Raises ConfigError when they are fewer."""
    wanted = split.devices
    if len(devices) < wanted:
        raise ConfigError(f"config key 'mesh' needs {wanted} devices; {whose} has {len(devices)}")
    return Placement.on(devices, split)


def default_platform() -> str:
    """The platform of jax's default device: cpu, gpu or tpu. Raises ConfigError when jax finds no device at all."""
    found = _devices()[0].platform
    return "gpu" if found in ("cuda", "rocm") else found


def _devices() -> list[Device]:
    """jax's devices. Raises ConfigError when what JAX_PLATFORMS asks for is not there."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        words = str(error).partition("\n")[0] or "no device"
        raise ConfigError(f"jax finds no device (JAX_PLATFORMS is {asked!r}): {words}") from None


def build(
    steps: Steps, params: Params, progress: Callable[[Built], None] = lambda built: None, load: bool = True
) -> Executables:
    """Compiles or loads every step of a plan; `progress` is called as each is done.

    params: the tree of arrays, or of shapes that say how they lie on the devices, as `model.weights.params` gives it.
    load: take what the store has; without it, as for a device that is not there (`compile.targets.targets`), every step
    is compiled and stored. Raises MemoryLimitError when XLA finds that a step does not fit the device, ConfigError for
    an impossible option.
    """
    config = steps.config
    store, warnings = Store(config.store_dir, config.cache_bytes) if config.store else None, []
    if store is not None and store.problem:
        warnings.append(f"executables are not kept: {store.problem}")
        store = None
    if steps.kernels.path == "native":
        native_ops.register()  # before an executable that calls the kernels is loaded, or runs
        native_ops.set_grids(steps.kernels.multiplied.values())
    builder = Builder(steps, params, store, load)
    built = {}
    # For a CPU one at a time: XLA shares each out among the cores, and a second one at work takes 225 MB more.
    pool = concurrent.futures.ThreadPoolExecutor(1 if config.platform == "cpu" else os.cpu_count())
    try:
        with _without_jax_cache():
            futures = [pool.submit(builder.build, key) for key in steps.plan.steps]
            for future in concurrent.futures.as_completed(futures):
                done = future.result()
                built[done.key] = done
                progress(done)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an interrupt or an error waits for no compilation under way
    _return_freed_memory()
    in_order = {key: built[key] for key in steps.plan.steps}
    warnings += [line for each in in_order.values() for line in each.warnings]
    return Executables(in_order, tuple(dict.fromkeys(warnings)))


@contextlib.contextmanager
def _without_jax_cache() -> Iterator[None]:
    """jax's own persistent cache off, where the user has it on: an executable out of it loads, but what it is
    serialized to does not ("Function ... not found"), so that our store would keep entries that fail when they run.
    """
    if not (jax.config.jax_compilation_cache_dir and jax.config.jax_enable_compilation_cache):  # pyright: ignore[reportAttributeAccessIssue]
        yield
        return
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it remembers whether it is on
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()


def _return_freed_memory() -> None:
    """Gives back to the system what building freed: of seven steps of a 1.1B model 265 MB when they are compiled, 40 to
    70 MB when they are read.
    """
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


@dataclasses.dataclass(frozen=True)
class Builder:
    """Makes the executables of a plan's steps, each by itself: several threads may use it at once."""

    steps: Steps
    params: Params  # arrays, or shapes that say how they lie on the devices
    store: Store | None
    load: bool  # take what the store has

    def build(self, key: StepKey) -> Built:
        """The step's executable, from the store or compiled, and then kept there. Raises as `build` does."""
        began = time.perf_counter()
        digest = entry_digest(self.steps, key, self.params)
        call, damaged = self._load(key, digest) if self.load else (None, ())
        hit = call is not None
        call = self._compile(key) if call is None else call
        not_kept = () if hit else self._keep(key, digest, call)
        memory, cost = call.memory_analysis(), call.cost_analysis() or {}
        return Built(
            key,
            call,
            (*damaged, *not_kept),
            xla_options(self.steps.config, self.steps.placement.flat[0], key),
            hit,
            time.perf_counter() - began,
            memory.argument_size_in_bytes if memory else 0,
            memory.output_size_in_bytes if memory else 0,
            memory.output_size_in_bytes - memory.alias_size_in_bytes if memory else 0,
            memory.temp_size_in_bytes if memory else 0,
            cost.get("flops"),
            cost.get("bytes accessed"),
        )

    def _load(self, key: StepKey, digest: str) -> tuple[Any | None, tuple[str, ...]]:
        """The stored executable, or None; and what is wrong with an entry that is there and cannot be used."""
        try:
            entry = None if self.store is None else self.store.read(digest)
            if entry is None:
                return None, ()
            devices = self.steps.placement.flat
            return serialize_executable.deserialize_and_load(*entry, execution_devices=devices), ()
        except Exception as error:  # whatever keeps an entry from loading: a pickle's errors are of every kind
            words = str(error).partition("\n")[0] if isinstance(error, EntryError) else repr(error)
            return None, (f"stored executable {key} is compiled again: {shown(words, 200)}",)

    def _compile(self, key: StepKey) -> jax.stages.Compiled:
        config, device = self.steps.config, self.steps.placement.flat[0]
        lowered = self.steps.lower(key, self.params)
        try:
            return lowered.compile(compiler_options=xla_options(config, device, key))
        except jax.errors.JaxRuntimeError as error:
            words = str(error).splitlines()[0]
            if words.startswith("RESOURCE_EXHAUSTED"):
                raise MemoryLimitError(f"{key} does not fit {device.device_kind}: {words}") from None
            if config.xla_options:
                raise ConfigError(f"config key 'xla_options': {words}") from None
            raise

    def _keep(self, key: StepKey, digest: str, call: jax.stages.Compiled) -> tuple[str, ...]:
        """Stores an executable; what kept it from being stored."""
        if self.store is None:
            return ()
        device, model = self.steps.placement.flat[0], self.steps.model
        name = f"{model.architecture.name} {shown(model.name, 100)}"  # what is told of an entry must stay short
        of = {"step": str(key), "device": device.device_kind, "model": name}
        try:
            self.store.write(digest, serialize_executable.serialize(call), origin(device.platform == "cpu") | of)
        except (OSError, ValueError, RuntimeError) as error:  # the latter two where a backend cannot serialize
            return (f"executables are not kept: {self.store.folder}: {reason(error)}",)
        return ()


def xla_options(config: CompileConfig, device: Device, key: StepKey) -> dict[str, Any]:
    """What XLA is told beside a step's program: the config's options, and else those of a device that is not here, and
    of a GPU to which layers are copied, all of a layer's matrices at a time.
    """
    passing = ALL_AT_A_TIME if config.pins and device.platform == "gpu" else {}
    return compiler_options(device, key.multiplied) | passing | dict(config.xla_options)


def entry_digest(steps: Steps, key: StepKey, params: Params) -> str:
    """Names an executable by everything that could change it: 64 hex digits."""
    config, placement = steps.config, steps.placement
    leaves, tree = jax.tree.flatten(steps.arguments(key, params))
    device = placement.flat[0]
    facts = {
        "step": str(key),
        "arguments": [str(tree), *(f"{x.dtype}{x.shape}" for x in leaves)],
        "model": repr(dataclasses.replace(steps.model, name="", rope_given=(), defaulted=(), unread=())),
        "config": [steps.plan.context, steps.kernels.path, config.activation_dtype, repr(config.xla_options)],
        "device": [device.platform, device.device_kind, *compiler_version(device)],
        "mesh": [repr(placement.split), [[each.id for each in row] for row in placement.devices], jax.process_index()],
        "versions": [jax.__version__, importlib.metadata.version("jaxlib"), python_version()],
        "host": host_features() if device.platform == "cpu" else "",
        "native": native_ops.register() if steps.kernels.path == "native" else "",
        "flags": os.environ.get("XLA_FLAGS", ""),
        "code": code_hash(),
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
