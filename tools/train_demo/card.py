"""The model card and its picture, made of what training and publishing recorded: no number in it is written by hand.

Only the picture needs matplotlib.
"""

import math
import pathlib
from typing import Any

from tools.train_demo.recipe import Recipe

TEMPLATE = pathlib.Path(__file__).with_suffix(".md")
LINES = {"loss": "training", "held_out": "held-out text", "seen": "answers, seen", "unseen": "answers, held out"}


def text(record: dict[str, Any]) -> str:
    """The card."""
    files, recipe, log = record["files"], record["recipe"], record["log"]
    rows = (
        f"| {kind} | {file['bytes'] / 1e6:.2f} | {file['perplexity']:.2f} ± {file['perplexity_error']:.2f} |"
        for kind, file in files.items()
    )
    answer_rows = (
        f"| {kind} | {row['asked']} | {row['exact']:.0%} | {row['begun']:.0%} | {row['f1']:.2f} |"
        for kind, row in record["answers"].items()
    )
    read = Recipe(**recipe).text(recipe["steps"])
    return TEMPLATE.read_text(encoding="utf-8").format(
        **record["shape"],
        **recipe,
        **{
            key: value for key, value in record.items() if key not in ("shape", "recipe", "runs", "samples", "examples")
        },
        runs=", ".join(f"{run['steps']} from step {run['from']}" for run in record["runs"]),
        megabytes=files["Q4_K_M"]["bytes"] / 1e6,
        table="\n".join(rows),
        answer_rows="\n".join(answer_rows),
        best=min(log, key=lambda row: row["held_out"])["step"],
        best_unseen=min(log, key=lambda row: row["unseen"])["step"],
        epochs=read / record["learned"],
        asked_epochs=(recipe["steps"] * recipe["tokens"] - read) / record["asked"],
        seen_perplexity=math.exp(log[-1]["seen"]),
        unseen_perplexity=math.exp(log[-1]["unseen"]),
        minutes=round(log[-1]["seconds"] / 60),
        per_token=record["characters"] / record["learned"],
        examples="\n\n".join(_example(row) for rows in record["examples"].values() for row in rows),
        samples="\n\n".join(_quote(f"**{sample['prompt']}**{sample['text']}") for sample in record["samples"]),
    )


def _example(row: dict[str, str]) -> str:
    other = "" if row["answer"] == row["documented"] else f"\n\n*{row['documented']}*"
    return _quote(f"**{row['question']}** {row['answer']}{other}")


def _quote(words: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in words.splitlines())


def picture(log: list[dict[str, float]], path: pathlib.Path) -> None:
    """Draws the losses over the steps, each training loss the mean since the row before."""
    import matplotlib.pyplot as plt  # pyright: ignore[reportMissingImports] - the extra `train` alone has it

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for key, label in LINES.items():
        axes.plot([row["step"] for row in log], [row[key] for row in log], label=label, linewidth=1.4)
    axes.set(xlabel="step", ylabel="loss, nats per token", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
