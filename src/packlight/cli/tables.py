"""What the commands' reports look like: tables and lines of text. It loads nothing and decides nothing."""

import os
import textwrap
from collections.abc import Sequence
from typing import Any

from packlight.common.text import megabytes, printable, shown_path

LINE = 100  # characters of a metadata value that are shown


def summary_text(report: dict[str, Any]) -> str:
    """What people ask of a file first, out of `packlight.inspect`'s report: a line or two each."""
    path, templates = report["path"], line(", ".join(report["chat_templates"]))
    formats = ", ".join(f"{name} x{entry['tensors']}" for name, entry in report["formats"].items())
    bits = f"; {report['bits_per_weight']:.2f} bits per weight" if report["bits_per_weight"] else ""
    why_not = "; ".join(why.removeprefix(f"{shown_path(path)}: ") for why in report["here"]["why_not"])
    numbers = report["hyperparameters"]
    shape = (
        "{block_count} layers of {embedding_length:,}, vocabulary of {vocab_size:,}".format(**numbers)
        if numbers
        else ""
    )
    rows = {
        "file": f"{line(os.path.basename(path), 400)}, {megabytes(report['file_bytes'])}",
        "architecture": ", ".join(filter(None, (line(str(report["architecture"] or "")), shape))),
        "parameters": _in_words(report["parameters"]),
        "quantization": f"{report['quantization']}: {formats}{bits}" if formats else "there are no tensors",
        "context": f"{numbers['context_length']:,} tokens{_stretched(report)}" if numbers else "",
        "chat template": templates or "none: it continues texts",
        "memory": _memory(report["memory"], report["cache"]) if report["memory"] else "",
        "runs here": f"no: {why_not}" if why_not else "; ".join([_with_what(report), *report["here"]["slow"]]),
        "not UTF-8": line(", ".join(report["not_utf8"])),
    }
    head = line(report["name"] if isinstance(report["name"], str) else os.path.basename(path)) + "\n"
    return head + "".join(_entry(title, text) for title, text in rows.items() if text)


def _entry(title: str, text: str) -> str:
    """A title and a text that goes on below itself."""
    lines = textwrap.wrap(text, 80 - 17, break_on_hyphens=False, break_long_words=False)
    return f"  {title:<15}" + ("\n" + " " * 17).join(lines) + "\n"


def _stretched(report: dict[str, Any]) -> str:
    """What a file says of positions, and how far they serve where that is further than it states."""
    numbers = report["hyperparameters"]
    if numbers["rope_scaling"]["kind"] == "none":
        return ""
    further = f", --context up to {reach:,}" if (reach := numbers["rope_reach"]) > numbers["context_length"] else ""
    return f"; positions {report['positions']}{further}"


def _memory(memory: dict[str, Any], cache: dict[str, Any]) -> str:
    """What a file takes on a CPU, and what there is."""
    parts = " + ".join(f"{name} {megabytes(memory[f'{name}_bytes'])}" for name in ("weights", "cache", "process"))
    limit = f"; there are {megabytes(memory['limit_bytes'])} ({memory['limit']})" if memory["limit"] else ""
    return f"{megabytes(memory['bytes'])}: {parts} for {cache['context']:,} tokens in {cache['kv_type']}{limit}"


def _with_what(report: dict[str, Any]) -> str:
    """How a file that runs here does."""
    if report["native"]:
        return f"yes, with native kernels: {report['native']['instructions']}"
    if any("native" in (tensor["path"] or "") for tensor in report["tensors"]):
        return "yes, with native kernels, which the first start builds"
    return "yes, but slowly"


def _in_words(count: int) -> str:
    for unit, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if count >= 0.9995 * unit:  # which three digits round to one
            return f"{count / unit:.3g} {name}"
    return f"{count:,}"


def inspect_text(report: dict[str, Any]) -> str:
    """`packlight.inspect`'s report as tables."""
    tensors = [
        (t["name"], " x ".join(map(str, t["shape"])), t["format"], f"{t['bytes']:,}", t["path"] or "-")
        for t in report["tensors"]
    ]
    totals = [(name, f"{f['tensors']:,}", f"{f['bytes']:,}") for name, f in report["formats"].items()]
    totals.append(("total", f"{len(tensors):,}", f"{sum(t['bytes'] for t in report['tensors']):,}"))
    cache, native = report["cache"], report["native"]
    parts = [
        f"{line(report['path'], 400)}: GGUF v{report['version']}, {report['file_bytes']:,} bytes, "
        f"{report['parameters']:,} parameters\n",
        table(("hyperparameter", "value"), _flat(report["hyperparameters"])),
        table(("metadata", "value"), _flat(report["metadata"])),
        table(("tensor", "shape", "format", ">bytes", "kernel"), tensors),
        table(("format", ">tensors", ">bytes"), totals),
        f"layers: {report['layers']}\n" if report["layers"] else "",
        f"native kernels: {native['instructions']}, {native['origin']}\n" if native else "",
        f"cache: {cache['bytes']:,} bytes for {cache['context']} tokens in {cache['kv_type']}\n" if cache else "",
        "".join(f"not UTF-8, its bytes are shown as \\xHH: {line(key)}\n" for key in report["not_utf8"]),
        "".join(f"unsupported: {problem}\n" for problem in report["unsupported"] or ["nothing"]),
    ]
    return "\n".join(filter(None, parts))


def compile_text(rows: Sequence[dict[str, Any]]) -> str:
    """A table of executables."""
    head = ("step", "store", ">seconds", ">arguments MB", ">scratch MB", ">GFLOP", ">GB moved")
    columns = [
        [row["step"] for row in rows],
        ["hit" if row["hit"] else "miss" for row in rows],
        [f"{row['seconds']:.2f}" for row in rows],
        [f"{row['argument_bytes'] / 1e6:,.1f}" for row in rows],
        [f"{row['scratch_bytes'] / 1e6:,.2f}" for row in rows],
        [_billions(row["flops"]) for row in rows],
        [_billions(row["bytes_accessed"]) for row in rows],
    ]
    return table(head, list(zip(*columns, strict=True)))


def target_text(rows: Sequence[dict[str, Any]]) -> str:
    """A table of executables for a target: what XLA says of each, then what any program for the step comes to."""
    head = ["step", ">seconds", ">arguments MB", ">outputs MB", ">scratch MB", ">XLA GFLOP", ">XLA GB"]
    head += [">GFLOP", ">GB", ">roofline ms", "limit", ">needs GB", "fits", "unpacked whole", "largest in scratch"]
    lines = []
    for row in rows:
        sizes = [f"{row[key] / 1e6:,.1f}" for key in ("argument_bytes", "output_bytes", "scratch_bytes")]
        counts = ("flops", "bytes_accessed", "must_do_flops", "must_read_bytes")
        least = ["-", "-"] if row["roofline_s"] is None else [f"{1e3 * row['roofline_s']:.3f}", row["roofline_limit"]]
        whole = row["unpacked"]
        unpacked = "-" if whole is None else ", ".join(f"{name} ({megabytes(n)})" for name, n in whole.items())
        most = row["largest_scratch"]
        largest = f"{most['array']} by {most['by']} ({megabytes(most['bytes'])})" if most else "-"
        lines.append(
            [row["step"], f"{row['seconds']:.1f}", *sizes, *(_billions(row[key]) for key in counts), *least]
            + [f"{row['needs_bytes'] / 1e9:.2f}", "yes" if row["fits"] else "no", unpacked or "none", largest]
        )
    return table(head, lines)


def _billions(count: float | None) -> str:
    return "-" if count is None else f"{count / 1e9:,.3f}"


def bench_text(record: dict[str, Any]) -> str:
    """A record of `bench`: what it ran on, results with the peer's and the ratios beside them, paths, times."""
    machine, limits, timings = record["machine"], record["limits"], record["timings"]
    theirs = {row["test"]: row for row in record.get("peer", {}).get("results", ())}
    head = ["test", ">tokens/s", ">sd", ">GB/s", ">of limit", ">GFLOP/s", ">of GEMM"]
    head += [f">{record['peer']['name']}", ">ratio", ">spread"] if theirs else []
    rows = []
    for row in record["results"]:
        cells = [row["test"], f"{row['tok_s']:.2f}", f"{row['sd']:.2f}", f"{row['gb_s']:.1f}"]
        cells += [f"{row['share_of_limit']:.0%}", f"{row['gflop_s']:.0f}", f"{row['share_of_gemm']:.0%}"]
        if row["test"] in theirs:
            ratio = record["ratio_details"][row["test"]]
            low, high = ratio["spread"]
            cells += [f"{theirs[row['test']]['tok_s']:.2f}", f"{ratio['median']:.3f}", f"{low:.3f}..{high:.3f}"]
        rows.append(cells + [""] * (len(head) - len(cells)))
    paths = [
        [path["path"], row["test"], f"{row['tok_s']:.2f}", f"{row['sd']:.2f}", f"{1 / ratio['median']:.3f}", covered]
        for path in record.get("paths", ())
        for covered in [_coverage(path["coverage"])]
        for row in path["results"]
        for ratio in [path["main_over_this"][row["test"]]]
    ]
    memory = record["memory"]
    parts = [
        f"{record['file']}: {machine['cpu']}, {record['threads']} threads, jax {machine['jax']}, "
        f"kernels {record['kernels']}: {_coverage(record['coverage'])}\n"
        f"limits measured in this run: {limits['read_gb_s']:.1f} GB/s read, "
        f"{limits['gemm_gflop_s']:.0f} GFLOP/s XLA {limits['gemm']}\n",
        table(head, rows),
        table(("path", "test", ">tokens/s", ">sd", f">of {record['kernels']}", "tensors by kernel"), paths)
        if paths
        else "",
        f"load {timings['load_s']:.2f} s, compile {timings['compile_s']:.2f} s "
        f"({record['compile']['hits']} from the store, {record['compile']['misses']} compiled), "
        f"peak memory {memory['peak_rss_bytes'] / 1e6:,.0f} MB: {memory['weights_bytes'] / 1e6:,.0f} weights, "
        f"{memory['kv_bytes'] / 1e6:,.0f} cache\n",
    ]
    return "\n".join(part for part in parts if part)


def perplexity_text(result: dict[str, Any]) -> str:
    """The statistics of `perplexity`, a line each, as llama.cpp words them."""
    chunks = f"{result['chunks']} chunks of {result['context']} tokens, {result['tokens']} predicted\n"

    def row(title: str, key: str, scale: float = 1, unit: str = "") -> str:
        return f"{title}: {scale * result[key]:.6f} +/- {scale * result[key + '_error']:.6f}{unit}\n"

    if "kl_divergence" not in result:
        return chunks + f"PPL = {result['perplexity']:.4f} +/- {result['perplexity_error']:.5f}\n"
    quantiles = "".join(f"KLD {100 * float(q):g} %: {value:.6f}\n" for q, value in result["kl_quantiles"].items())
    return (
        chunks
        + row("mean PPL(Q)", "perplexity")
        + row("mean PPL(base)", "base_perplexity")
        + row("mean ln(PPL(Q)/PPL(base))", "log_ratio")
        + row("mean KLD", "kl_divergence")
        + f"maximum KLD: {result['kl_max']:.6f}\n"
        + quantiles
        + row("RMS change of p", "delta_p_rms", 100, " %")
        + row("same top p", "same_top", 100, " %")
    )


def models_text(rows: Sequence[dict[str, Any]]) -> str:
    """A table of the models on this machine; of one that does not run, why, in few words."""
    head = ("model", ">MB", "quantization", "architecture", "runs")
    lines = [
        (
            line(row["name"], 400),
            f"{row['bytes'] / 1e6:,.1f}",
            row["quantization"] or "-",
            line(row["architecture"] or "-", 40),
            "yes" if row["runs"] else f"no: {row['why_not']}",
        )
        for row in rows
    ]
    return table(head, lines)


def quantize_text(report: dict[str, Any]) -> str:
    """What was written, and the error of each format."""
    rows = [
        (name, f"{each['weights']:,}", f"{each['bytes']:,}", f"{each['rms_error']:.3g}")
        for name, each in report["formats"].items()
    ]
    head = f"{line(report['path'], 400)}: {report['bytes_before']:,} -> {report['bytes']:,} bytes\n"
    return head + table(("format", ">weights", ">bytes", ">rms error"), rows)


def _coverage(paths: dict[str, dict[str, int]]) -> str:
    return ", ".join(f"{path} x{c['tensors']} ({megabytes(c['bytes'])})" for path, c in paths.items())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under a head, as wide as they need to be; ">" before a title aligns its column to the right."""
    lines = [[title.lstrip(">") for title in head], *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = [">" if title.startswith(">") else "<" for title in head]
    shown = ["  ".join(f"{c:{s}{w}}" for c, s, w in zip(cells, sides, widths, strict=True)) for cells in lines]
    return "".join(text.rstrip() + "\n" for text in shown)


def line(text: str, limit: int = LINE) -> str:
    """`text` on one line that no terminal acts on, cut where it gets long."""
    shown = printable(text[:limit])
    return shown if len(text) <= limit else f"{shown}... ({len(text):,} characters)"


def short(value: Any) -> Any:
    """Long arrays by their length and first elements."""
    if isinstance(value, list) and len(value) > 8:
        return f"[{len(value)} elements: {', '.join(repr(v) for v in value[:4])}, ...]"
    return value


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Names and values as text, one line each; what is nested gets a dotted name."""
    rows = []
    for name, value in values.items():
        full = prefix + name
        match value:
            case dict() if value:
                rows += _flat(value, f"{full}.")
            case ((str(), _), *_):  # pairs of key and value
                rows += _flat(dict(value), f"{full}.")
            case () | {}:
                rows.append((line(full), "none"))
            case float():
                rows.append((line(full), f"{value:.7g}"))  # the digits that a float32 holds
            case _:
                rows.append((line(full), line(str(value))))
    return rows
