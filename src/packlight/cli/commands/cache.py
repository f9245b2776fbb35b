"""`packlight cache`: what is kept on disk between runs."""

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from packlight.cli.flags import Command
from packlight.cli.tables import table
from packlight.cli.terminal import say, write, write_json
from packlight.common.errors import ConfigError
from packlight.common.text import megabytes, shown, shown_path

if TYPE_CHECKING:
    from packlight.stored import Kept

UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def run(values: flags.FlagValues) -> None:
    """Lists executables, weights and native kernels with what made them; removes those of other versions, or all."""
    from packlight.compile.config import default_config, read_config
    from packlight.stored import as_json, folders, kept, remove

    if values.dry_run and values.action in (None, "list"):
        raise ConfigError("--dry_run is for prune and clear; list removes nothing")
    config = read_config(values.config) if values.config is not None else default_config("cpu")
    store, kernels = folders(config)
    apart = kernels.parent != store
    files = kept(config)
    going = [each for each in files if not each.held and (each.stale or values.action == "clear")]
    report = {"folder": str(store), "kernels_folder": str(kernels), "files": [as_json(each) for each in files]}
    if values.action in (None, "list"):
        where = shown_path(str(store)) + (f" and {shown_path(str(kernels))}" if apart else "")
        if values.json:
            write_json(report | {"bytes": _size(files), "prunable_bytes": _size(going)})
        else:
            write(_listed(where, files, going, values.verbose))
        return
    gone = going if values.dry_run else remove(going)
    if values.json:
        write_json(report | {"removed": [as_json(each) for each in gone], "dry_run": values.dry_run})
        return
    if values.verbose:
        write("".join(f"{shown_path(str(each.path))}\n" for each in gone))
    done, left = "would remove" if values.dry_run else "removed", [each for each in files if each not in gone]
    write(f"{done} {len(gone)} files, {megabytes(_size(gone))}; {len(left)} stay, {megabytes(_size(left))}\n")
    if apart and (beside := [each for each in gone if each.path.parent == kernels]):
        say(f"{done} with these {len(beside)} in {shown_path(str(kernels))}: native kernels, which no cache_dir moves")
    if held := [each for each in left if each.held]:
        say(f"{len(held)} of those that stay are in use by other processes")


def _size(files: "Sequence[Kept]") -> int:
    return sum(each.bytes for each in files)


def _listed(where: str, files: "Sequence[Kept]", going: "Sequence[Kept]", each_file: bool) -> str:
    """The files in groups of the same kind and origin, or one by one."""
    groups: dict[tuple[str, ...], list[Kept]] = {}
    for each in files:
        by = {name: shown(value) for name, value in each.made_by.items()}  # a model's name is a stranger's
        made = ", ".join(f"{name} {by[name]}" for name in ("packlight", "jax") if name in by) or "-"
        what = (by.get("step", shown(os.path.basename(each.path))), by.get("model", "-")) if each_file else ()
        fate = "stays: in use" if each.held else f"goes: {each.stale}" if each.stale else "stays"
        groups.setdefault((each.kind, *what, made, fate), []).append(each)
    rows = [
        (*key[:-1], f"{len(group)}", megabytes(_size(group)), _age(max(e.modified for e in group)), key[-1])
        for key, group in groups.items()
    ]
    head = ("kind", *(("what", "model") if each_file else ()), "made by", ">files", ">size", "newest", "prune")
    total = f"{where}: {len(files)} files, {megabytes(_size(files))}"
    head_line = f"{total}; prune would remove {len(going)}, {megabytes(_size(going))}\n"
    return head_line + (table(head, rows) if rows else "")


def _age(modified: float) -> str:
    seconds = max(0, time.time() - modified)
    for unit, name in UNITS:
        if seconds >= unit:
            return f"{int(seconds / unit)} {name} ago"
    return "just now"


COMMAND = Command(
    "cache",
    "list, prune or clear stored executables, weights and kernels",
    "packlight cache prune",
    ("action", "config", "dry_run", "json"),
    run,
    ("list", "prune", "clear"),
)
