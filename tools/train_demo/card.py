"""The model card and its picture, made of what training and publishing recorded: no number in it is written by hand.

Only the picture needs matplotlib.
"""

import pathlib
from typing import Any

TEMPLATE = pathlib.Path(__file__).with_suffix(".md")


def text(record: dict[str, Any]) -> str:
    """The card."""
    files = record["files"]
    rows = (
        f"| {kind} | {file['bytes'] / 1e6:.2f} | {file['perplexity']:.2f} ± {file['perplexity_error']:.2f} |"
        for kind, file in files.items()
    )
    log = record["log"]
    return TEMPLATE.read_text(encoding="utf-8").format(
        **record["shape"],
        **record["recipe"],
        **{key: value for key, value in record.items() if key not in ("shape", "recipe", "samples")},
        megabytes=files["Q4_K_M"]["bytes"] / 1e6,
        table="\n".join(rows),
        best=min(log, key=lambda row: row["held_out"])["step"],
        epochs=record["recipe"]["steps"] * record["recipe"]["tokens"] / record["learned"],
        minutes=round(log[-1]["seconds"] / 60),
        per_token=record["characters"] / record["learned"],
        samples="\n\n".join(_quote(sample["prompt"], sample["text"]) for sample in record["samples"]),
    )


def _quote(prompt: str, continuation: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in f"**{prompt}**{continuation}".splitlines())


def picture(log: list[dict[str, float]], path: pathlib.Path) -> None:
    """Draws the losses over the steps, each training loss the mean since the row before."""
    import matplotlib.pyplot as plt  # pyright: ignore[reportMissingImports] - the extra `train` alone has it

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    steps = [row["step"] for row in log]
    axes.plot(steps, [row["loss"] for row in log], color="tab:blue", label="training", linewidth=1)
    axes.plot(steps, [row["held_out"] for row in log], color="tab:orange", label="held out")
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
