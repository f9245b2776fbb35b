"""Trains the demo model: `python -m tools.train_demo.train --out=FOLDER --documentation=FOLDER [--steps=N]`.

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
from tools.train_demo import corpus, questions, vocabulary
from tools.train_demo.documentation import entries, pages
from tools.train_demo.network import Shape, init
from tools.train_demo.recipe import Recipe, Streams, held_out_loss, optimizer, stream, told, updater, windows

OUT = flags.DEFINE_string("out", None, "folder to write to", required=True)
DOCUMENTATION = flags.DEFINE_string(
    "documentation",
    None,
    "folder of the documentation's sources: Doc in Python's repository, or _sources as built",
    required=True,
)
STEPS = flags.DEFINE_integer("steps", Recipe.steps, "steps of training")
SEED = flags.DEFINE_integer("seed", Recipe.seed, "seed of parameters and order")
EVERY = flags.DEFINE_integer("every", 50, "steps between checkpoints, each with the held-out losses")
MEASURED = 8192  # tokens of the held-out text, the first, that are read at each checkpoint


@dataclasses.dataclass(frozen=True)
class Data:
    """What is learned from, and what is held out: ids, int32 (tokens,)."""

    streams: Streams
    text: np.ndarray
    asked: np.ndarray
    sizes: dict[str, Any]


def prepare(out: pathlib.Path, documentation: pathlib.Path, recipe: Recipe, vocab: int) -> Data:
    """Reads all text there is. Writes the vocabulary, the held-out text, and what is asked, to `out`."""
    learn, held_out = corpus.split(corpus.documents(documentation))
    asked = questions.topics(entries(documentation))
    texts, held_out_text = [document.text for document in learn], "\n\n".join(document.text for document in held_out)
    (out / "held-out.txt").write_text(held_out_text + "\n")
    (out / "topics.json").write_text(json.dumps([dataclasses.asdict(topic) for topic in asked], indent=0))
    known, unknown = [topic for topic in asked if not topic.held_out], [topic for topic in asked if topic.held_out]

    def talk(topics: list[questions.Topic], epoch: int) -> list[str]:
        return [vocabulary.conversation(pairs) for pairs in questions.conversations(topics, (recipe.seed, epoch))]

    tokenizer = vocabulary.learn(texts + talk(known, 0), vocab)
    tokenizer.save(str(out / "tokenizer.json"))
    learned = vocabulary.encode(tokenizer, texts)
    read = recipe.text(recipe.steps)
    text = stream(lambda epoch: _shuffled(learned, (recipe.seed, epoch)), read)
    talks = stream(lambda epoch: vocabulary.encode(tokenizer, talk(known, epoch)), recipe.steps * recipe.tokens - read)
    (held_out_ids,) = vocabulary.encode(tokenizer, [held_out_text])
    sizes = {
        "python": platform.python_version(),
        "documents": len(texts),
        "characters": sum(map(len, texts)),
        "learned": sum(map(len, learned)),
        "held_out": len(held_out_ids),
        "topics": len(known),
        "held_out_topics": len(unknown),
        "asked": sum(map(len, vocabulary.encode(tokenizer, talk(known, 0)))),
    }
    unseen = np.concatenate(vocabulary.encode(tokenizer, talk(unknown, 0)))
    return Data(Streams(text, talks), held_out_ids, unseen, sizes)


def _shuffled(documents: list[np.ndarray], seed: tuple[int, ...]) -> list[np.ndarray]:
    return [documents[i] for i in np.random.default_rng(seed).permutation(len(documents))]


def main(_: list[str]) -> None:
    out, shape, recipe = pathlib.Path(OUT.value), Shape(), Recipe(steps=STEPS.value, seed=SEED.value)
    if not any(pages(pathlib.Path(DOCUMENTATION.value))):
        raise SystemExit(
            f"--documentation={DOCUMENTATION.value}: no .rst pages in library/, reference/, tutorial/, ..."
        )
    out.mkdir(parents=True, exist_ok=True)
    data = prepare(out, pathlib.Path(DOCUMENTATION.value), recipe, shape.vocab)
    about = {
        "recipe": dataclasses.asdict(recipe),
        "shape": dataclasses.asdict(shape),
        "cores": os.cpu_count(),
    } | data.sizes
    params = init(jax.random.key(recipe.seed), shape)
    tx = optimizer(params, recipe)
    state, log, first, runs = tx.init(params), [], 0, []
    if (out / "checkpoint.pickle").exists():
        params, state, log, first = pickle.loads((out / "checkpoint.pickle").read_bytes())
        runs = json.loads((out / "run.json").read_text())["runs"]
    about["runs"] = [*runs, {"from": first, "steps": recipe.steps}]
    update, recent = updater(tx, shape), []
    begun = time.monotonic() - (log[-1]["seconds"] if log else 0.0)
    for step in tqdm(range(first, recipe.steps), initial=first, total=recipe.steps, mininterval=10):
        batch = windows(data.streams, recipe, step)
        params, state, value = update(params, state, batch, told(batch))
        recent.append(float(value))
        if (step + 1) % EVERY.value == 0 or step + 1 == recipe.steps:
            row = {
                "step": step + 1,
                "loss": float(np.mean(recent)),
                "held_out": held_out_loss(params, data.text[:MEASURED], shape, recipe.window),
                "seen": held_out_loss(params, data.streams.asked[:MEASURED], shape, recipe.window),
                "unseen": held_out_loss(params, data.asked, shape, recipe.window),
                "seconds": round(time.monotonic() - begun),
            }
            log.append(row)
            tqdm.write(json.dumps(row))
            save(out / "checkpoint.pickle", (params, state, log, step + 1))
            (out / "run.json").write_text(json.dumps(about | {"log": log}, indent=1) + "\n")
            recent = []


def save(path: pathlib.Path, tree: Any) -> None:
    """Writes a pytree of arrays, whole or not at all."""
    with whole_file(str(path)) as partial, open(partial, "wb") as file:
        pickle.dump(jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, tree), file)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    app.run(main)
