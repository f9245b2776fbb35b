"""`packlight compile`: the executables of a config, for this machine or another."""

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from absl import flags

from packlight.cli.flags import Command
from packlight.cli.tables import compile_text, target_text
from packlight.cli.terminal import Bar, say, warn, write, write_json

if TYPE_CHECKING:
    from packlight.compile.memory import Limit, MemoryPlan
    from packlight.compile.targets import targets
    from packlight.prepared import Prepared


def run(values: flags.FlagValues) -> None:
    """Builds and stores every executable of a config, for this machine or another; prints a table of them."""
    from packlight.cli.loading import prepared_from, say_memory
    from packlight.compile.targets import targets

    target = None if values.target is None else targets.parse(values.target)
    prepared = prepared_from(values, target=target)
    limit = _limit(prepared, target)
    say_memory(prepared, limit)
    from packlight.compile import aot
    from packlight.compile.kernels import attention_names
    from packlight.compile.targets import report
    from packlight.model.spec.weights import formats
    from packlight.model.weights.params import abstract

    there = target if target is not None and target.chip is not None else None
    config, split = prepared.config, prepared.split
    if there is None:
        placement = aot.find_devices(config, split)
    else:
        placement = aot.place_on(targets.devices(there), split, f"--target={there.name}")
    params = abstract(prepared.model, formats(prepared.file), prepared.layout, placement)
    attention = attention_names(config, prepared.model, placement.flat[0])
    say(f"{placement.flat[0].device_kind}: attention {attention}")
    with Bar() as bar:
        bar.start("compile", len(prepared.plan.steps), unit="step")
        executables = aot.build(
            *(prepared.model, config, prepared.plan, params, placement),
            lambda _: bar.advance(1),
            load=there is None,
        )
    warn([*prepared.warnings, *executables.warnings])
    memory = dataclasses.replace(prepared.memory, scratch=executables.scratch_bytes)
    say(f"memory with scratch: {memory}")
    file, model, kv_dtype = prepared.file, prepared.model, prepared.config.kv_dtype
    rows = [
        report.step_row(built)
        if target is None
        else report.target_row(built, target, file, model, kv_dtype, split, memory, limit)
        for built in executables.built.values()
    ]
    if values.json:
        counts = {"hits": executables.hits, "misses": executables.misses, "compiled": aot.compile_count()}
        result = {"executables": rows, "compile": counts, "memory": _memory_report(memory, limit)}
        result["attention"] = attention
        write_json(result | ({"target": dataclasses.asdict(target)} if target else {}))
    else:
        write(compile_text(rows) if target is None else target_text(rows))
    if limit is not None:
        limit.check(memory, os.path.basename(prepared.file.path))


def _limit(prepared: "Prepared", target: "targets.Target | None") -> "Limit | None":
    """The memory that the model may take: of the target's chip, else of the device that is here."""
    if target is None or target.chip is None or prepared.config.memory_limit:
        return prepared.memory_limit
    from packlight.compile.memory import Limit

    return Limit(int(target.chip.memory), f"{target.chip.device_kind} by its datasheet")


def _memory_report(memory: "MemoryPlan", limit: "Limit | None") -> dict[str, Any]:
    return {
        "weights_bytes": memory.weights,
        "kv_bytes": memory.cache,
        "scratch_bytes": memory.scratch,
        "limit_bytes": limit and limit.bytes,
        "limit": limit and limit.source,
    }


COMMAND = Command(
    "compile",
    "build and store the executables of a config, also for hardware that is not here",
    "packlight compile --model=model.gguf --target=cuda:h200",
    ("model", "config", "target", "context", "json"),
    run,
)
