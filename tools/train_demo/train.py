"""Trains the demo model: `python -m tools.train_demo.train --out=FOLDER [--steps=N]`.

Writes the vocabulary, the held-out text, a record of what it did, and checkpoints from which the same command goes on
after an interruption. The learning rate warms up, stays, and falls to nothing over the last part of the steps, so a
checkpoint of the middle part also serves a run of more or fewer steps.
"""

import dataclasses
import json
import os
import pathlib
import pickle
import platform
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags
from tqdm import tqdm

from packlight.common.files import whole_file
from tools.train_demo import corpus, vocabulary
from tools.train_demo.network import Shape, init
from tools.train_demo.recipe import Recipe, held_out_loss, optimizer, updater, windows

OUT = flags.DEFINE_string("out", None, "folder to write to", required=True)
STEPS = flags.DEFINE_integer("steps", Recipe.steps, "steps of training")
SEED = flags.DEFINE_integer("seed", Recipe.seed, "seed of parameters and order")
EVERY = flags.DEFINE_integer("every", 25, "steps between checkpoints, each with the held-out loss")


def prepare(out: pathlib.Path, size: int) -> tuple[list[np.ndarray], np.ndarray, dict[str, Any]]:
    """Ids of each document to learn from, ids of the held-out text, and how much text that is.

    Writes the vocabulary and the held-out text.
    """
    learn, held_out = corpus.split(corpus.documents())
    texts, held_out_text = [document.text for document in learn], "\n\n".join(document.text for document in held_out)
    (out / "held-out.txt").write_text(held_out_text + "\n")
    tokenizer = vocabulary.learn(texts, size)
    tokenizer.save(str(out / "tokenizer.json"))
    learned, (held_out_ids,) = vocabulary.encode(tokenizer, texts), vocabulary.encode(tokenizer, [held_out_text])
    sizes = {
        "python": platform.python_version(),
        "documents": len(texts),
        "characters": sum(map(len, texts)),
        "learned": sum(map(len, learned)),
        "held_out": len(held_out_ids),
    }
    return learned, held_out_ids, sizes


def main(_: list[str]) -> None:
    out, shape, recipe = pathlib.Path(OUT.value), Shape(), Recipe(steps=STEPS.value, seed=SEED.value)
    out.mkdir(parents=True, exist_ok=True)
    documents, held_out, sizes = prepare(out, shape.vocab)
    about = {"recipe": dataclasses.asdict(recipe), "shape": dataclasses.asdict(shape), "cores": os.cpu_count()} | sizes
    params = init(jax.random.key(recipe.seed), shape)
    tx = optimizer(params, recipe)
    state, log, first = tx.init(params), [], 0
    if (out / "checkpoint.pickle").exists():
        params, state, log, first = pickle.loads((out / "checkpoint.pickle").read_bytes())
    update, recent = updater(tx, shape), []
    begun = time.monotonic() - (log[-1]["seconds"] if log else 0.0)
    for step in tqdm(range(first, recipe.steps), initial=first, total=recipe.steps, mininterval=10):
        params, state, value = update(params, state, windows(documents, recipe, step))
        recent.append(float(value))
        if (step + 1) % EVERY.value == 0 or step + 1 == recipe.steps:
            losses = {"loss": float(np.mean(recent)), "held_out": held_out_loss(params, held_out, shape, recipe.window)}
            log.append({"step": step + 1, **losses, "seconds": round(time.monotonic() - begun)})
            tqdm.write(json.dumps(log[-1]))
            save(out / "checkpoint.pickle", (params, state, log, step + 1))
            if losses["held_out"] <= min(row["held_out"] for row in log):
                save(out / "best.pickle", params)
            (out / "run.json").write_text(json.dumps(about | {"log": log}, indent=1) + "\n")
            recent = []


def save(path: pathlib.Path, tree: Any) -> None:
    """Writes a pytree of arrays, whole or not at all."""
    with whole_file(str(path)) as partial, open(partial, "wb") as file:
        pickle.dump(jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, tree), file)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    app.run(main)
