"""The table of servers under load from a record of `bench/serving.py`. Pure arithmetic, imports no jax."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

OURS, THEIRS = "packlight", "llama-server"
TITLES = {  # load -> what it is called, with the record's sizes
    "one": "1 client",
    "several": "{clients} clients",
    "crowd": "{crowd} clients",
    "shared": "{clients} clients, shared system prompt",
    "arrival": "{long:,} tokens arrive among {streams} streams",
    "chats": "second turns of {chats} chats",
    "turns": "later turns of one chat",
}
COLUMNS = {  # figure -> its column's title and how a number is written
    "tok_s": ("tokens/s", "{:.1f}"),
    "first_p50_s": ("first token p50, s", "{:.3f}"),
    "first_p95_s": ("p95", "{:.3f}"),
    "gap_p50_s": ("between tokens p50, s", "{:.3f}"),
    "gap_p95_s": ("p95", "{:.3f}"),
    "gap_max_s": ("largest", "{:.3f}"),
    "health_p99_s": ("/health p99, s", "{:.3f}"),
    "cached": ("cached", "{:.0%}"),
    "failed": ("failed", "{:.0f}"),
}
COMPARED = [key for key in COLUMNS if key not in ("cached", "failed")]
Rounds = Sequence[Mapping[str, float]]


def medians(rounds: Rounds) -> dict[str, float]:
    """Each figure's median over the rounds that have it; of what was not answered the sum."""
    keys = dict.fromkeys(key for figures in rounds for key in figures)
    found = {key: statistics.median(figures[key] for figures in rounds if key in figures) for key in keys}
    return found | {key: sum(figures.get(key, 0) for figures in rounds) for key in ("failed", "unhealthy")}


def times_better(key: str, ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Over one for us: rates are ours over theirs, seconds theirs over ours. The median of pairs, and their range."""
    each = [a / b if key == "tok_s" else b / a for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(each), (min(each), max(each))


def better(key: str, ours: Rounds, theirs: Rounds) -> tuple[float, tuple[float, float]] | None:
    """`times_better` of the rounds in which both have the figure; None without any."""
    pairs = [(a[key], b[key]) for a, b in zip(ours, theirs, strict=True) if key in a and key in b]
    return times_better(key, *zip(*pairs, strict=True)) if pairs else None


def overhead(record: Mapping[str, Any]) -> float | None:
    """The share of the engine's rate that the server costs: the median of pairs."""
    pairs = record.get("overhead")
    return None if pairs is None else 1 - times_better("tok_s", pairs["served_tok_s"], pairs["alone_tok_s"])[0]


def table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: each server's medians for each load, and how many times better ours are, with the range."""
    rows = []
    for load, by_server in record["serving"].items():
        title = TITLES[load].format(**record["sizes"])
        for server, rounds in by_server.items():
            found = medians(rounds)
            cells = [form.format(found[key]) if key in found else "" for key, (_, form) in COLUMNS.items()]
            rows.append([title, server, *cells])
        if THEIRS in by_server:
            ratios = [_ratio(better(key, by_server[OURS], by_server[THEIRS])) for key in COMPARED]
            rows.append([title, "times better", *ratios, *[""] * (len(COLUMNS) - len(COMPARED))])
    return ["load", "server", *(title for title, _ in COLUMNS.values())], rows


def _ratio(found: tuple[float, tuple[float, float]] | None) -> str:
    """A ratio below 1 is a loss and is bold."""
    if found is None:
        return ""
    median, (low, high) = found
    shown = f"**{median:.2f}**" if median < 1 else f"{median:.2f}"
    return f"{shown} ({low:.2f}–{high:.2f})"
