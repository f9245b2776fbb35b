"""A model as the commands prepare and load it: with progress bars, and the plan in brief on stderr."""

import dataclasses
import os
import platform
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from absl import flags

import packlight
from packlight.cli.inputs import model_or_demo
from packlight.cli.terminal import Bar, detail, say, warn
from packlight.common.errors import ConfigError
from packlight.common.text import megabytes, shown, shown_path
from packlight.compile.config import PLATFORMS, CompileConfig, default_config, read_config
from packlight.model.spec import stretching
from packlight.model.spec.layers import in_words, traced
from packlight.model.spec.rope_changes import ROPE
from packlight.model.spec.state import QUANTIZED
from packlight.prepared import Prepared, prepare

if TYPE_CHECKING:
    from packlight.compile.aot import Executables
    from packlight.compile.counter import CompileCounter
    from packlight.compile.memory import Limit
    from packlight.compile.targets import targets


def prepared_from(
    values: flags.FlagValues,
    context: int | None = None,
    target: "targets.Target | None" = None,
    alone: bool = True,
) -> Prepared:
    """What the flags name, checked; context: instead of the flag's.

    alone: the command runs one sequence at a time, so it takes one slot, unless --slots or a config that was named say
    otherwise; else it takes the config's.
    """
    path = model_or_demo(values)
    config = config_of(values)
    use_threads(values.threads)
    if target is not None:
        config = target.config(config)
        target.check_compiler()
    slots = slots_of(values) if alone else values.slots
    context = values.context if context is None else context
    rope = {name: values[name].value for name in ROPE}
    draft = values.draft_model if "draft_model" in values else None
    return prepare(
        path,
        config,
        context,
        slots,
        values.kv_type,
        values.speculate,
        values.weights,
        values.weights_budget,
        values.weights_ahead,
        draft,
        **rope,
    )


def slots_of(values: flags.FlagValues) -> int | None:
    """The slots that the flags ask for; None leaves them to the config that was named."""
    return values.slots if values.slots is not None or values.config is not None else 1


def config_of(values: flags.FlagValues) -> CompileConfig | None:
    """The config that --config or --device names, or None. Raises ConfigError where they contradict each other."""
    config = read_config(values.config) if values.config is not None else None
    if values.device is None:
        return config
    if values.device not in PLATFORMS:
        raise ConfigError(f"--device={values.device} is none of {', '.join(PLATFORMS)}")
    if config is not None and config.platform != values.device:
        raise ConfigError(f"--device={values.device} but the platform of --config={values.config} is {config.platform}")
    return config or default_config(values.device)


def use_threads(count: int | None) -> None:
    """Leaves this process `count` of its cores, before jax starts a thread for each. Raises ConfigError."""
    if count is None:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError("--threads: this system lets no process choose its cores; all of them are used")
    cores = sorted(os.sched_getaffinity(0))
    if count < 1:
        raise ConfigError(f"--threads={count} is less than 1")
    if count > len(cores):
        say(f"--threads={count}: this process may use {len(cores)} cores, and uses these")
    os.sched_setaffinity(0, cores[:count])


def say_memory(prepared: Prepared, limit: "Limit | None") -> None:
    """The memory plan on stderr, before anything is loaded. Raises MemoryLimitError when it does not fit."""
    if limit is not None:
        limit.check(prepared.memory, os.path.basename(prepared.file.path))
    devices = prepared.split.devices
    where = f" on each of {devices} devices" if devices > 1 else ""
    say(f"memory{where}: {prepared.memory}" + ("" if limit is None else f" of {limit}"))


def load(prepared: Prepared, on_weights: Callable[[], None] = lambda: None) -> "packlight.LLM":
    """The prepared model; memory, plan and warnings are said on stderr, where progress bars show the way there.

    on_weights: called when the weights are read and nothing is compiled yet.
    """
    say_memory(prepared, prepared.memory_limit)
    draft = None
    if prepared.companion is not None:
        draft, on_weights = _load(prepared.companion, on_weights), lambda: None
    llm = _load(prepared, on_weights, draft)
    for line in describe(llm):
        say(line)
    for line in internals(llm):
        detail(line)
    warn([*prepared.warnings, *llm.warnings])
    return llm


def compile_counts(counter: "CompileCounter", *executables: "Executables") -> dict[str, int]:
    """How many executables came from the store, how many were compiled for it, and all compilations counted."""
    hits, misses = (sum(getattr(each, name) for each in executables) for name in ("hits", "misses"))
    return {"hits": hits, "misses": misses, "compiled": counter.count}


def _load(prepared: Prepared, on_weights: Callable[[], None], draft: "packlight.LLM | None" = None) -> "packlight.LLM":
    """The prepared model with its draft model, if there is one, with progress bars."""
    left = prepared.weights_bytes
    with Bar() as bar:
        bar.start("load", left, unit="B", unit_scale=True)

        def on_read(nbytes: int, _total: int) -> None:
            nonlocal left
            left -= nbytes
            bar.advance(nbytes)
            if not left:
                on_weights()
                bar.start("compile", len(prepared.plan.steps), unit="step")

        return packlight.LLM(prepared, on_read, lambda _built, _total: bar.advance(1), draft)


def describe(llm: "packlight.LLM") -> list[str]:
    """The plan in brief: the file with its formats, the kernels with their instruction set, the executables, the mesh
    if there is one.
    """
    mix = ", ".join(f"{name} x{entry['tensors']}" for name, entry in packlight.format_totals(llm.file).items())
    layouts = llm.layouts()
    kinds = Counter((path, layouts.get(name, "ggml")) for name, path in llm.kernel_paths().items())
    paths = ", ".join(
        f"{path} x{n}" + (f" ({layout})" if layout != "ggml" else "") for (path, layout), n in kinds.most_common()
    )
    varying = "; ".join(llm.varying)
    experts = f", experts {llm.experts_path}" if llm.experts_path else ""
    launch = f", {n} tokens per launch" if (n := llm.plan.tokens_per_launch) > 1 else ""
    name, layers = shown_path(os.path.basename(llm.file.path)), llm.model.layers
    drafts = f", {llm.plan.verified[-1] - 1} drafts a step" if llm.plan.verified else ""
    kept = f", cache {llm.config.kv_dtype}" if llm.config.kv_dtype in QUANTIZED else ""
    slots = f", slots {llm.plan.slots}{launch}{drafts}{kept}" if llm.model.generates else ", no cache"
    return [
        f"{name}: {llm.model.architecture.name}, {megabytes(llm.weights_bytes)}: {mix}",
        f"{llm.device.device_kind}: kernels {paths}, attention {llm.attention_path}{experts}; "
        f"context {llm.plan.context}{slots}; "
        f"executables: {llm.executables.hits} from the store, {llm.executables.misses} compiled",
        *([f"positions: {_positions(llm)}"] if llm.model.rope_given or llm.model.rope_scaling.kind != "none" else []),
        *([f"native kernels: {llm.native}"] if llm.native else []),
        *([f"last bits may depend on chunks and neighbours: {varying}"] if llm.native and varying else []),
        *([f"layers: {in_words(layers)}"] if traced(layers) > 1 else []),
        *([] if llm.placement.single else [f"{llm.placement.split}"]),
        *([] if llm.draft is None else [f"draft model: {'; '.join(describe(llm.draft)[:2])}"]),
    ]


def _positions(llm: "packlight.LLM") -> str:
    """How positions are stretched, and who says so."""
    said = stretching.in_words(llm.model) or "no layer rotates by them"
    return f"{said} ({', '.join(f'--{name}' for name in llm.model.rope_given) or 'as the file says'})"


def internals(llm: "packlight.LLM") -> list[str]:
    """What the plan leaves out: versions, the config, each executable, each tensor's kernel, the memory, the times."""
    import jax

    config, store, memory = llm.config, llm.config.store_dir.expanduser(), llm.memory
    paths, layouts, tensors = llm.kernel_paths(), llm.layouts(), llm.file.tensors
    return [
        f"Python {platform.python_version()}, jax {jax.__version__}, {llm.device.device_kind}, {platform.platform()}",
        *(f"config: {field.name} = {getattr(config, field.name)!r}" for field in dataclasses.fields(config)),
        f"positions: {_positions(llm)}",
        f"store: {store if config.store else 'none'}",
        *(
            f"executable {built.key}: {'from the store' if built.hit else 'compiled'} in {built.seconds:.2f} s, "
            f"scratch {megabytes(built.scratch_bytes)}"
            for built in llm.executables.built.values()
        ),
        *(
            f"tensor {shown(name)}: {tensors[name].format.name}, read by {path}"
            + (f", layout {layouts[name]}" if name in layouts else "")
            for name, path in paths.items()
        ),
        f"memory with scratch: {memory}",
        f"read in {llm.timings['load_s']:.2f} s, executables in {llm.timings['compile_s']:.2f} s",
    ]
