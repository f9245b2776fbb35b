"""The documents' tables from the records in `bench/results` and of the tests: no number there is written by hand.

python -m packlight.bench.render      # rewrites what stands between the markers in README.md and docs/
"""

import json
import pathlib
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from packlight.bench import load_table

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
CHECKS = ROOT / "tests" / "checks.json"  # pytest --record=tests/checks.json tests/model/network/test_logits.py
MODELS = ("tinyllama-1.1b", "tinyllama-1.1b-batch", "tinyllama-1.1b-xla", "llama-3.2-1b", "llama-2-7b")
ACCELERATED = ("gpu-tinyllama-1.1b", "gpu-tinyllama-1.1b-pp2048", "gpu-llama-3-8b", "gpu-llama-3-8b-pp2048")
SUMMARY = {  # the rows of the README's table: record -> tests; the rest is in docs/speed.md
    "tinyllama-1.1b": ("pp512", "tg128", "tg128 @ d4096"),
    "tinyllama-1.1b-batch": ("tg128 b8",),
    "tinyllama-1.1b-xla": ("tg16",),
    "llama-2-7b": ("tg32",),
    "gpu-llama-3-8b": ("pp512", "tg128"),
}
DTYPES = {"f32": "float32", "bf16": "bfloat16"}
Record = dict[str, Any]


def records(folder: pathlib.Path = RESULTS) -> dict[str, list[Record]]:
    """Name -> records of every run in the folder, oldest first."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def tables(found: dict[str, list[Record]]) -> str:
    """All tables that the records give, as Markdown, machine by machine; empty when there are none."""
    return "\n".join(filter(None, (_tables(_latest(found, kind)) for kind in _kinds(found))))


def summary(found: dict[str, list[Record]]) -> str:
    """One short table of the rows in SUMMARY, for every kind of machine that has them; empty when there are none."""
    rows = []
    for kind in _kinds(found):
        latest = _latest(found, kind)
        for name, tests in SUMMARY.items():
            measured = latest.get(name, {}).get("results", ())
            for row in (row for row in measured if row["test"] in tests):
                cells = _cells(latest[name], row)
                rows.append([_label(name, latest[name]), _machine_name(kind), *cells[:2], *cells[-3:]])
    head = ("model", "machine", "test", "tokens/s", "llama.cpp", "ratio", "range")
    return _table(head, rows) if rows else ""


def _kinds(found: dict[str, list[Record]]) -> list[tuple[str, str]]:
    """The kinds of machines of all records, in the order in which they were first measured."""
    everything = sorted((record for runs in found.values() for record in runs), key=lambda r: r["machine"]["date"])
    return list(dict.fromkeys(map(_kind, everything)))


def _kind(record: Record) -> tuple[str, str]:
    """What multiplied: the CPU and its vectors, or the accelerator."""
    machine = record["machine"]
    if record.get("backend", "cpu") != "cpu":
        return record["device"], ""
    return machine["cpu"], machine.get("vectors", "")


def _machine_name(kind: tuple[str, str]) -> str:
    return " with ".join(filter(None, kind))


def _latest(found: dict[str, list[Record]], kind: tuple[str, str]) -> dict[str, Record]:
    """Name -> last record of a kind of machine."""
    return {name: record for name, runs in found.items() for record in runs if _kind(record) == kind}


def _tables(found: dict[str, Record]) -> str:
    runs = {name: record for name, record in found.items() if "results" in record}
    if not runs:
        return _memory(found)
    shaped = [name for name in runs if name.startswith("shape-")]
    parts = [_machine(runs.values()), _models(runs, (*MODELS, *ACCELERATED)), _unpacked(runs)]
    parts += [_models(runs, shaped, "shape"), _formats(runs), _paths(runs)]
    parts += [_breakdown(found.get("breakdown")), _startup(found.get("startup")), _memory(found)]
    return "\n".join(part for part in parts if part)


def _machine(runs: Iterable[Record]) -> str:
    runs = list(runs)
    kinds = sorted({(_machine_name(_kind(r)), r["threads"], r["machine"]["jax"]) for r in runs})
    peers = sorted({f"{r['peer']['name']} ({r['peer']['version']})" for r in runs if "peer" in r})
    days = sorted({r["machine"]["date"][:10] for r in runs})
    where = "; ".join(f"{name}, {threads} threads, jax {jax}" for name, threads, jax in kinds)
    dtype = DTYPES[runs[0]["limits"]["gemm"].split()[0]]
    against = f" Ratios are against {', '.join(peers)}, run in turn with packlight." if peers else ""
    (low, high), (slow, fast) = (
        (min(values), max(values))
        for key in ("read_gb_s", "gemm_gflop_s")
        for values in [[r["limits"][key] for r in runs]]
    )
    return (
        f"{where}; {days[0]}{f' to {days[-1]}' if len(days) > 1 else ''}.{against} A ratio is the median of pairs, its"
        f" range the smallest and largest pair. The machine is shared: from run to run its memory read {low:.0f} to"
        f" {high:.0f} GB/s and XLA's {dtype} matrix product ran at {slow:.0f} to {fast:.0f} GFLOP/s, so rates of"
        " different rows do not compare; shares are of the limit measured in the same run.\n"
    )


def _models(runs: dict[str, Record], names: Iterable[str], title: str = "model") -> str:
    rows = []
    for name in names:
        if name in runs:
            record = runs[name]
            rows += [[_label(name, record), *_cells(record, row)] for row in record["results"]]
    head = (title, "test", "tokens/s", "GB/s", "of bandwidth", "of GEMM", "llama.cpp", "ratio", "range")
    return _table(head, rows) if rows else ""


def _label(name: str, record: Record) -> str:
    """The model of a record, what it lacks, and the kernels where they are not the usual ones."""
    model = name.removeprefix("gpu-").removeprefix("shape-")
    model = model.removesuffix("-batch").removesuffix("-xla").removesuffix("-pp2048")
    kernels = record.get("kernels", "native")
    return f"{model} {_mix(record)}{_layers(record)}" + ("" if kernels == "native" else f", `{kernels}`")


def _layers(record: Record) -> str:
    """Of a synthetic model that has fewer than its shape: `suite.Entry.file`."""
    found = re.search(r"-layers(\d+)-", record["file"])
    return f", {found[1]} layers" if found else ""


def _unpacked(runs: dict[str, Record]) -> str:
    """On an accelerator: our rate over that of the same model with its matrices in bfloat16."""
    rows = [
        [_mix(record), test, f"{ratio['median']:.2f}", f"{ratio['spread'][0]:.2f}–{ratio['spread'][1]:.2f}"]
        for name in ACCELERATED
        if name in runs
        for record in [runs[name]]
        for path in record.get("paths", ())
        if path["path"] == "bf16"
        for test, ratio in path["main_over_this"].items()
    ]
    return _table(["packed over bfloat16", "test", "ratio", "range"], rows) if rows else ""


def _mix(record: Record) -> str:
    return record["file"].removesuffix(".gguf").rpartition("-")[2]


def _cells(record: Record, row: Record) -> list[str]:
    peer, ratio, spread = _against(record, row["test"])
    prompt = row["test"].startswith("pp")
    return [
        row["test"],
        f"{row['median']:.1f}",
        "" if prompt else f"{row['gb_s']:.1f}",
        "" if prompt else f"{row['share_of_limit']:.0%}",
        f"{row['share_of_gemm']:.0%}" if prompt else "",
        peer,
        ratio,
        spread,
    ]


def _against(record: Record, test: str) -> tuple[str, str, str]:
    """The peer's median rate, our rate over it and the range of the pairs; a ratio below 1 is a loss and is bold."""
    rates = {row["test"]: row["median"] for row in record.get("peer", {}).get("results", ())}
    if test not in rates:
        return "", "", ""
    detail = record["ratio_details"][test]
    shown = f"{detail['median']:.2f}"
    low, high = detail["spread"]
    return f"{rates[test]:.1f}", f"**{shown}**" if detail["median"] < 1 else shown, f"{low:.2f}–{high:.2f}"


def _formats(runs: dict[str, Record]) -> str:
    rows, tests = [], []
    for name, record in runs.items():
        if name.startswith("format-"):
            tests = [row["test"] for row in record["results"]]
            cells = [name.removeprefix("format-") + _layers(record)]
            for row in record["results"]:
                peer, ratio, _ = _against(record, row["test"])
                cells += [f"{row['median']:.1f}", peer, ratio]
            rows.append(cells)
    if not rows:
        return ""
    head = ["1.1B shape, all in", *(title for test in tests for title in (test, "llama.cpp", "ratio"))]
    return _table(head, rows)


def _paths(runs: dict[str, Record]) -> str:
    """What each kernel path is worth: our default's rate over the path's."""
    rows, titles = [], []
    for name, record in runs.items():
        if name == "paths" or name.startswith("paths-"):
            label = "Q4_K_M, whole model" if name == "paths" else f"{name.removeprefix('paths-')}, two layers"
            cells = [label]
            titles = []
            for path in record["paths"]:
                for row in path["results"]:
                    phase = row["test"][:2]
                    titles.append(f"{phase} {path['path']}")
                    cells.append(f"{row['median']:.1f}")
            rows.append(cells)
    if not rows:
        return ""
    text = (
        "The same file through every kernel path, tokens/s: `reference` unpacks each matrix whole on every call, `f32` "
        "keeps them all unpacked in memory, `xla` and `native` are the fused paths. On the Q4_K_M file `native` covers "
        f"{_covered(runs)}.\n\n"
    )
    return text + _table(["format", *titles], rows)


def _covered(runs: dict[str, Record]) -> str:
    record = runs.get("paths") or next(r for n, r in runs.items() if n.startswith("paths-"))
    total = sum(entry["bytes"] for entry in record["coverage"].values())
    return ", ".join(
        f"{path} {entry['tensors']} tensors and {entry['bytes'] / total:.1%} of the bytes"
        for path, entry in record["coverage"].items()
    ).replace("native ", "", 1)


def _breakdown(record: Record | None) -> str:
    if record is None:
        return ""
    each = [f"{part} {time:.2f} ms ({time / record['step_ms']:.0%})" for part, time in record["parts_ms"].items()]
    return f"A decode step of {record['file']} at depth {record['depth']}, from a profile: {', '.join(each)}.\n"


STARTUP = {
    "start_to_first_token_s": "process start to first token, s",
    "load_s": "load, s",
    "compile_s": "compile, s",
    "ttft_s": "first token of the prompt, s",
    "peak_rss_mb": "peak memory, MB",
    "over_file_and_kv_mb": "of it beyond weights and cache, MB",
    "compiled": "executables compiled",
}


def _startup(record: Record | None) -> str:
    if record is None:
        return ""
    rows = []
    for key, title in STARTUP.items():
        warm = [run[key] for run in record["warm"]]
        shown = [record["cold"][key], statistics.median(warm), min(warm), max(warm)]
        cold, mid, low, high = (f"{value:,.2f}".removesuffix(".00") for value in shown)
        rows.append([title, cold, mid, f"{low}–{high}"])
    label = f"start of {record['file']} ({record['file_bytes'] / 1e6:,.0f} MB)"
    return _table([label, "first ever", "later, median", "range"], rows)


def _memory(found: dict[str, Record]) -> str:
    """The peak of a process for each prompt, and of its memory what is no page of a file."""
    rows = []
    for name, record in found.items():
        if name.startswith("memory-"):
            for runs in record["memory"]:
                ours, theirs = runs["packlight"], runs.get("llama.cpp", {})
                sizes = [record["file_bytes"], ours["planned_bytes"]]
                sizes += [run.get(key) for run in (ours, theirs) for key in ("peak_rss_bytes", "peak_anonymous_bytes")]
                cells = ["" if size is None else f"{size / 1e6:,.0f}" for size in sizes]
                label = record["file"].removesuffix(".gguf")
                rows.append([label, f"{record['context']:,}", f"{ours['prompt_tokens']:,}", *cells])
    head = ("memory, MB", "context", "prompt", "file", "planned", "peak", "anonymous", "llama.cpp", "anonymous")
    return _table(head, rows) if rows else ""


def load(record: Record) -> str:
    """The table of servers under load, and what the server costs beside the engine alone."""
    over = load_table.overhead(record)
    text = "" if over is None else f"\nOf the engine's tokens per second the server costs {over:.1%}.\n"
    return (_table(*load_table.table(record)) if record["serving"] else "") + text


def loads(found: dict[str, list[Record]]) -> str:
    """The tables of servers under load, of every kind of machine and model; empty when there are none."""
    parts = []
    for kind in _kinds(found):
        for name, record in _latest(found, kind).items():
            if name.startswith("serving-"):
                machine, peer = record["machine"], record.get("peer")
                against = f" Beside it {peer['name']} {peer['version']}, in turn." if peer else ""
                size = f"{record['threads']} threads, {record['slots']} slots of {record['context']:,} tokens"
                head = f"{record['file']} on {_machine_name(kind)}, {size}; {machine['date']}.{against}\n"
                parts.append(f"{head}\n{load(record)}")
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; numbers are what most columns hold, so all but the first align right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *rows))


def models(checks: dict[str, Record]) -> str:
    """The table of model files that the tests compare with llama.cpp."""
    rows = [
        [
            name.partition("/")[2],
            check["architecture"],
            ", ".join(sorted(check["formats"])),
            f"{check['error']:.0e}",
            str(check["greedy"]),
            f"{check['rounding']:.2f}" if "rounding" in check else "",
        ]
        for name, check in checks.items()
    ]
    head = ("file", "architecture", "formats beside F32", "error", "greedy ids equal", "int8 rounding")
    text = (
        "Every file is run with float32 activations against llama.cpp on the same weights. `error`: the largest of a"
        " logit, in standard deviations of the logits; `greedy ids equal`: how many were compared. `int8 rounding`: how"
        " far the native kernels' logits are from exact ones, over how far llama.cpp's own are.\n\n"
    )
    return text + _table(head, rows)


def rendered(document: str, region: str, text: str) -> str:
    """A document's text with the part between a region's markers replaced. Raises ValueError without markers."""
    begin, end = f"<!-- {region}:begin -->", f"<!-- {region}:end -->"
    before, opened, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise ValueError(f"there is no {begin} ... {end}")
    return f"{before}{begin}\n{text}{end}{after}"


REGIONS: dict[str, dict[str, Callable[[], str]]] = {  # document -> what stands between which markers
    "README.md": {"speed": lambda: summary(records())},
    "docs/speed.md": {"bench": lambda: tables(records()), "serving": lambda: loads(records())},
    "docs/models.md": {"models": lambda: models(json.loads(CHECKS.read_text(encoding="utf-8")))},
}


def document(name: str, text: str) -> str:
    """The text of a document of REGIONS with all its tables as the records say."""
    for region, table in REGIONS[name].items():
        text = rendered(text, region, table())
    return text


def main() -> None:
    for name in REGIONS:
        path = ROOT / name
        path.write_text(document(name, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
