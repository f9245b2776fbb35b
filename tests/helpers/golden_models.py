"""A model file beside llama.cpp's numbers of it: ours by recipe, always there, and those under ../shared.

Names are "own/NAME" of `recipes`, and "FOLDER/NAME" of a fixture, which `shared` marks.
"""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import arch_goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDENS_FOLDER, SHARED
from peer import POOLINGS
from recipe_files import write
from recipes import RECIPES

from packlight.model.gguf.reader import open_gguf
from packlight.model.spec.architectures import ARCHITECTURES

OWN = [f"own/{name}" for name in RECIPES]
PACKED = [f"own/{name}" for name, recipe in RECIPES.items() if recipe.formats]


def shared(cases: Iterable[Any]) -> list:
    """Parameters for `make test-more`, not collected where ../shared is absent: ours stand for each of them."""
    return [pytest.param(case, marks=(pytest.mark.shared, pytest.mark.product)) for case in cases]


@dataclasses.dataclass(frozen=True)
class Golden:
    """What llama.cpp says of `ids`, on the twin in floats; `picked` takes of our logits (T, V) what it has of its own.

    rounded_gelu: it is told with ggml's table of GELU in float16, which `gelu_table` imitates.
    """

    path: pathlib.Path
    ids: list[int]
    logits: np.ndarray
    greedy: list[int]
    packed_logits: np.ndarray | None  # of the file as it is, where llama.cpp rounds activations
    stock_logits: np.ndarray  # `logits`, told with the table wherever the family has a GELU
    rounded_gelu: bool
    own: bool
    embeddings: dict[str, np.ndarray]  # pooling -> (D,), not of length 1

    def picked(self, logits: np.ndarray) -> np.ndarray:
        logits = logits[: len(self.ids)]
        return arch_goldens.picked(logits) if self.own else logits


def model(name: str, folder: pathlib.Path) -> pathlib.Path:
    """The file, which is written into `folder` if it is one of ours."""
    kind, stem = name.split("/")
    return write(folder / f"{stem}.gguf", RECIPES[stem]) if kind == "own" else SHARED / kind / f"{stem}.gguf"


@functools.cache
def metadata(name: str) -> Mapping[str, Any]:
    """Of one of ours, as a file holds it."""
    with tempfile.TemporaryDirectory() as folder:
        return dict(open_gguf(model(f"own/{name}", pathlib.Path(folder))).metadata)


def golden(name: str, folder: pathlib.Path) -> Golden:
    path, (kind, stem) = model(name, folder), name.split("/")
    if kind == "own":
        found = own_goldens()
        floats = found[f"{stem}.logits_f32"]
        table = ARCHITECTURES[RECIPES[stem].architecture].ffn.kind in ("gelu", "geglu")
        packed = found.get(f"{stem}.logits")
        greedy, pooled = found[f"{stem}.greedy"].tolist(), {kind: found[f"{stem}.{kind}"] for kind in POOLINGS}
        return Golden(path, arch_goldens.ids(), floats, greedy, packed, floats, table, True, pooled)
    found = np.load(path.with_suffix(".npz"))
    exact = "_gelu32" if "logits_f32_gelu32" in found else ""  # without ggml's GELU table in float16
    logits, greedy = found[f"logits_f32{exact}"], found[f"greedy_ids_f32{exact}"].tolist()
    return Golden(path, found["ids"].tolist(), logits, greedy, found["logits"], found["logits_f32"], False, False, {})


@functools.cache
def own_goldens() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDENS_FOLDER / "arch_goldens.npz"))


def gelu_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """GELU as ggml computes it: of float16, in float16, and beyond 10 of either sign none at all."""
    exact = jax.nn.gelu

    def half(x: jax.Array) -> jax.Array:
        return x.astype(jnp.float16).astype(jnp.float32)

    def rounded(x: jax.Array, approximate: bool = True) -> jax.Array:
        return jnp.where(jnp.abs(x) < 10, half(exact(half(x), approximate)), jnp.maximum(x, 0))

    monkeypatch.setattr(jax.nn, "gelu", rounded)
