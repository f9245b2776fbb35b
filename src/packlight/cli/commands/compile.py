"""`packlight compile`: the executables of a config, for this machine or another."""

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

from absl import flags

from packlight.cli.flags import DRAFTING, PLAN, Command
from packlight.cli.tables import compile_text, target_text
from packlight.cli.terminal import Bar, say, warn, write, write_json
from packlight.common.text import megabytes

if TYPE_CHECKING:
    from packlight.compile.aot import Executables
    from packlight.compile.memory import Limit, MemoryPlan
    from packlight.compile.targets import targets
    from packlight.model.weights.placement import Placement
    from packlight.prepared import Prepared


def run(values: flags.FlagValues) -> None:
    """Builds and stores every executable of a config, for this machine or another, and those of a draft model where one
    is named; prints a table of them.
    """
    from packlight.cli.loading import compile_counts, prepared_from, say_memory
    from packlight.compile.counter import CompileCounter
    from packlight.compile.targets import targets

    target = None if values.target is None else targets.parse(values.target)
    prepared = prepared_from(values, target=target)
    limit = _limit(prepared, target)
    prepared = dataclasses.replace(prepared, limit=limit)
    say_memory(prepared, limit)
    _say_link(prepared, target)
    with CompileCounter() as counter:
        draft = None if prepared.companion is None else _build(prepared.companion, target)[0]
        executables, attention = _build(prepared, target)
    built = [each for each in (executables, draft) if each is not None]
    warn([*prepared.warnings, *(line for each in built for line in each.warnings)])
    memory = dataclasses.replace(prepared.memory, scratch=max(each.scratch_bytes for each in built))
    say(f"memory with scratch: {memory}")
    rows = _rows(prepared, target, executables, memory, limit)
    if prepared.companion is not None and draft is not None:
        beside = dataclasses.replace(prepared.companion.memory, draft=memory.held)
        of_draft = _rows(prepared.companion, target, draft, beside, limit)
        rows += [row | {"step": f"draft {row['step']}"} for row in of_draft]
    if values.json:
        counts = compile_counts(counter, *built)
        result = {"executables": rows, "compile": counts, "memory": _memory_report(memory, limit)}
        result["attention"] = attention
        write_json(result | ({"target": dataclasses.asdict(target)} if target else {}))
    else:
        write(compile_text(rows) if target is None else target_text(rows))
    if limit is not None:
        limit.check(memory, os.path.basename(prepared.file.path))


def _say_link(prepared: "Prepared", target: "targets.Target | None") -> None:
    """How long a chip's link to its host takes at least for what a pass over the layers copies."""
    where = prepared.residence
    if prepared.kept is None or where is None or target is None or target.chip is None:
        return
    link, copied = target.chip.host_link, f"{megabytes(where.step_bytes)} a pass over the layers"
    if link is None:
        say(f"host link: {copied}; no rate of it is published for {target.chip.device_kind}")
    else:
        say(f"host link: {copied}, {1e3 * where.step_bytes / link:,.1f} ms at least by {link / 1e9:g} GB/s")


def _build(prepared: "Prepared", target: "targets.Target | None") -> "tuple[Executables, str]":
    """Every executable of the plan, and the name of what computes attention. Those for a chip are not loaded."""
    from packlight.compile import aot
    from packlight.model.spec.weights import formats
    from packlight.model.weights.params import abstract

    placement = _placement(prepared, target)
    streamed = prepared.residence is not None and not prepared.config.pins
    layouts, kept = prepared.kernels.layouts, prepared.kept
    params = abstract(prepared.model, formats(prepared.file), layouts, placement, streamed, kept)
    device, steps = placement.flat[0], prepared.steps(placement)
    attention = prepared.kernels.attention_names(device)
    told = {key: aot.xla_options(prepared.config, device, key).items() for key in steps.plan.steps}
    say(f"{device.device_kind}: attention {attention}")
    for name, value in dict.fromkeys(option for options in told.values() for option in options):
        of = [str(key) for key, options in told.items() if (name, value) in options]
        say(f"XLA's option {name} = {json.dumps(value)}: {', '.join(of) if len(of) < len(told) else 'every step'}")
    with Bar() as bar:
        bar.start("compile", len(prepared.plan.steps), unit="step")
        executables = aot.build(
            steps,
            params,
            lambda _: bar.advance(1),
            load=target is None or target.chip is None,
        )
    return executables, attention


def _placement(prepared: "Prepared", target: "targets.Target | None") -> "Placement":
    """The devices of the target's chip, which need not be here, or those of this machine."""
    from packlight.compile import aot
    from packlight.compile.targets import targets

    if target is None or target.chip is None:
        return aot.find_devices(prepared.config, prepared.split)
    return aot.place_on(targets.devices(target), prepared.split, f"--target={target.name}")


def _rows(
    prepared: "Prepared",
    target: "targets.Target | None",
    executables: "Executables",
    memory: "MemoryPlan",
    limit: "Limit | None",
) -> list[dict[str, Any]]:
    """What is reported of each executable: more for a target than for this machine."""
    from packlight.compile.targets import report

    if target is None:
        return [report.step_row(built) for built in executables.built.values()]
    file, model, kv_dtype = prepared.file, prepared.model, prepared.config.kv_dtype
    return [
        report.target_row(built, target, file, model, kv_dtype, prepared.split, memory, limit)
        for built in executables.built.values()
    ]


def _limit(prepared: "Prepared", target: "targets.Target | None") -> "Limit | None":
    """The memory that the model may take: of the target's chip, else of the device that is here."""
    if target is None or target.chip is None or prepared.config.memory_limit:
        return prepared.memory_limit
    from packlight.compile.memory import Limit

    return Limit(int(target.chip.memory), f"{target.chip.device_kind} by its datasheet")


def _memory_report(memory: "MemoryPlan", limit: "Limit | None") -> dict[str, Any]:
    return {
        "weights_bytes": memory.weights,
        "mapped_bytes": memory.mapped,
        "kv_bytes": memory.cache,
        "scratch_bytes": memory.scratch,
        "process_bytes": memory.process,
        "limit_bytes": limit and limit.bytes,
        "limit": limit and limit.source,
    }


COMMAND = Command(
    "compile",
    "build executables ahead, also for hardware that is not here",
    "packlight compile --model=model.gguf --target=cuda:h200",
    ("model", "target", *DRAFTING, *PLAN, "json"),
    run,
)
