"""A trained model's file beside llama.cpp's greedy text of it: ours, always there, and those under ../shared.

Names are "demo/KIND" of `demo_files`, and "models/NAME" of a fixture, which `golden_models.shared` marks.
"""

import dataclasses
import functools
import json

import numpy as np
import text_goldens
from conftest import GOLDENS_FOLDER, SHARED
from demo_files import KINDS

DEMOS = [f"demo/{kind}" for kind in KINDS]


@dataclasses.dataclass(frozen=True)
class GoldenText:
    """What llama.cpp makes of a prompt. Margins are the leads of greedy tokens over the next.

    `_f32` is of the twin whose matrices were unpacked to F32; without it, llama.cpp rounds activations.
    """

    prompt: str
    ids: list[int]
    columns: int  # every how many tokens' logits are told
    logits: np.ndarray  # (len(ids), V / columns)
    logits_f32: np.ndarray
    greedy_ids: np.ndarray
    greedy_ids_f32: np.ndarray
    greedy_margin: np.ndarray
    greedy_margin_f32: np.ndarray
    text_f32: str


def golden_text(name: str) -> GoldenText:
    kind, stem = name.split("/")
    if kind == "demo":
        found = {key.partition(".")[2]: value for key, value in own_goldens().items() if key.startswith(f"{stem}.")}
        prompt, columns, text = text_goldens.PROMPT, text_goldens.COLUMNS, str(found["greedy_text_f32"])
    else:
        path = SHARED / kind / f"{stem}.npz"
        found, told = np.load(path), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        prompt, columns, text = told["prompt"], 1, told["greedy_text_f32"]
    names = ("logits", "greedy_ids", "greedy_margin")
    arrays = {f"{name}{ending}": found[f"{name}{ending}"] for name in names for ending in ("", "_f32")}
    return GoldenText(prompt, found["ids"].tolist(), columns, text_f32=text, **arrays)


@functools.cache
def own_goldens() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDENS_FOLDER / "text_goldens.npz"))
