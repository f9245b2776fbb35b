"""What an executable will cost on a chip, as plain data memory, least time, weights unpacked."""

from collections.abc import Mapping
from typing import Any

import jax

from packlight.compile.aot import Built
from packlight.compile.memory import Limit, MemoryPlan
from packlight.compile.targets.chips import roofline
from packlight.compile.targets.hlo import largest, materialized
from packlight.compile.targets.targets import Target
from packlight.compile.targets.traffic import passes, step_bytes, step_flops
from packlight.model.gguf.reader import GGUFFile
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.sharding import WHOLE, Split
from packlight.model.spec.weights import is_tied, used_weights
from packlight.model.weights.pinned import Pinned


def step_row(built: Built) -> dict[str, Any]:
    """One executable as `compile` reports it, whatever it is for."""
    return {"step": str(built.key)} | {k: v for k, v in vars(built).items() if k not in ("key", "call", "warnings")}


def target_row(
    built: Built,
    target: Target,
    file: GGUFFile,
    cfg: ModelConfig,
    kv_dtype: str,
    split: Split,
    memory: MemoryPlan,
    limit: Limit | None,
) -> dict[str, Any]:
    """`step_row` and what it means on the target.

    must_copy_bytes: streamed weights that come from pinned host memory.
    must_read_bytes, must_do_flops: what any program must read and do for this step when its slots are full
    (`compile.targets.traffic`), on each device where the model is shared out; roofline_s, roofline_limit: the least
    time for that on the chip. needs_bytes: everything resident while it runs; fits: whether the device has so much.
    unpacked: weight -> bytes of the array it is unpacked into as a whole. largest_scratch: what takes most of the
    scratch. Both are None where XLA cannot show the program, as when libtpu is newer than jaxlib.
    """
    program: Any = built.call
    moved = step_bytes(built.key, file, cfg, kv_dtype) / split.tensor
    flops = step_flops(built.key, file, cfg) / split.tensor
    try:
        text = program.as_text()
    except jax.errors.JaxRuntimeError:
        text = None
    array = largest(text, built.scratch_bytes) if text else None
    where = memory.residence
    copied = passes(built.key) * where.step_bytes if isinstance(where, Pinned) else 0
    line = roofline(target.chip, moved, flops, copied) if target.chip else None
    own = max(memory.held, built.argument_bytes)  # a device may pad what it keeps
    needs = own + memory.draft + built.new_bytes + built.scratch_bytes
    return step_row(built) | {
        "must_read_bytes": moved,
        "must_do_flops": flops,
        "must_copy_bytes": copied,
        "roofline_s": line and line.seconds,
        "roofline_limit": line and line.limit,
        "needs_bytes": needs,
        "fits": limit is None or needs <= limit.bytes,
        "unpacked": unpacked(text, file, cfg, split) if text else None,
        "largest_scratch": array
        and {"bytes": array.bytes, "array": array.shape, "by": array.opcode, "in": array.op_name},
    }


def unpacked(text: str, file: GGUFFile, cfg: ModelConfig, split: Split = WHOLE) -> dict[str, int]:
    """Weight (`|` between those that look alike) -> bytes of the array that a program unpacks it into as a whole."""
    formats = {name: info.format.name for name, info in file.tensors.items()}
    found: dict[str, int] = {}
    for (qtype, out, width, op_name), size in materialized(text).items():
        names = _alike(formats, cfg, split, qtype, (out, width), op_name)
        found[names] = max(found.get(names, 0), size)
    return found


def _alike(
    formats: Mapping[str, str], cfg: ModelConfig, split: Split, qtype: str, shape: tuple[int, int], op_name: str
) -> str:
    """Names of the weights of a format and, on a device, shape that are used in the part of the model that `op_name`
    lies in: the scopes of `model.network.forward` are the names of parts, and "head".
    """
    used = used_weights(cfg, formats)
    scopes = {weight: weight.part or "head" for weight in used}
    here = {scope for scope in scopes.values() if f"/{scope}/" in op_name} or set(scopes.values())
    multiplied = used if is_tied(used) else [weight for weight in used if weight.name != "token_embd"]
    names = [
        weight.name
        for weight in multiplied
        if split.part(weight).shape[-2:] == shape
        and scopes[weight] in here
        and any(formats.get(name) == qtype for name in weight.tensors)
    ]
    return "|".join(names)
