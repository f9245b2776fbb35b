"""Puts a trained model into `demo/`: `python -m tools.train_demo.publish --run=FOLDER`, the folder that `train` wrote.

The last checkpoint becomes a file of floats, `run.py quantize` makes the small ones, `run.py perplexity` measures them
on the held-out text, `run.py generate` writes the sample texts; the small model is asked what it learned. Model card
and picture are made of what was recorded.
"""

import json
import pathlib
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tokenizers
from absl import app, flags

import packlight
from packlight.demo import MODEL, QUESTION
from tools.train_demo import card, export
from tools.train_demo.network import Shape
from tools.train_demo.questions import Topic

RUN = flags.DEFINE_string("run", None, "folder that training wrote", required=True)

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPTS = ("A Python function", "Return the number of", "The list is", "If the file does not exist,", "This class")
GREEDY = ("--temperature=0", "--max_tokens=64")
SAMPLING = ("--temperature=0.5", "--seed=1", "--max_tokens=80")
ASKED = 200  # topics that training saw, drawn by chance; of those it did not see, all are asked
SHOWN = 4  # of each in the card, drawn by chance


def packlight_command(*arguments: str) -> str:
    """What a command of this checkout writes to stdout."""
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout


def measure(model: pathlib.Path, held_out: pathlib.Path) -> dict[str, Any]:
    """Size and held-out perplexity of a file."""
    measured = json.loads(packlight_command("perplexity", f"--model={model}", f"--file={held_out}", "--json"))
    return {"bytes": model.stat().st_size} | {key: measured[key] for key in ("perplexity", "perplexity_error")}


def samples(model: pathlib.Path) -> list[dict[str, str]]:
    """A continuation of each of PROMPTS."""
    texts = [packlight_command(f"--model={model}", f"--prompt={prompt}", *SAMPLING) for prompt in PROMPTS]
    return [{"prompt": prompt, "text": text.strip("\n")} for prompt, text in zip(PROMPTS, texts, strict=True)]


def ask(llm: packlight.LLM, topics: Sequence[Topic], chance: random.Random) -> list[dict[str, Any]]:
    """What the model answers greedily to one of each topic's questions, beside what the documentation says."""
    found = []
    for topic in topics:
        question = chance.choice(topic.questions)
        completion = llm.chat([{"role": "user", "content": question}], temperature=0, max_tokens=96)
        found.append({"question": question, "answer": completion.text.strip(), "documented": topic.answer})
    return found


def scores(asked: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The shares of answers that are the documented ones, word for word, and whose first five words are theirs.

    `f1`: of the words of an answer and of the documented one, a mean.
    """
    pairs = [(row["answer"].split(), row["documented"].split()) for row in asked]
    return {
        "asked": len(pairs),
        "exact": float(np.mean([said == right for said, right in pairs])),
        "begun": float(np.mean([said[:5] == right[:5] for said, right in pairs])),
        "f1": float(np.mean([_f1(said, right) for said, right in pairs])),
    }


def _f1(said: list[str], right: list[str]) -> float:
    return 2 * (Counter(said) & Counter(right)).total() / (len(said) + len(right))


def main(_: Sequence[str]) -> None:
    run, folder = pathlib.Path(RUN.value), MODEL.parent
    shape, (params, *_) = Shape(), pickle.loads((run / "checkpoint.pickle").read_bytes())
    shutil.copyfile(run / "held-out.txt", folder / "held-out.txt")
    with tempfile.TemporaryDirectory() as scratch:
        floats = pathlib.Path(scratch, "F32.gguf")
        export.write(floats, params, shape, tokenizers.Tokenizer.from_file(str(run / "tokenizer.json")))
        files = {"F32": floats}
        for kind in ("Q8_0", "Q4_K_M"):
            files[kind] = pathlib.Path(scratch, f"{kind}.gguf")
            packlight_command("quantize", f"--model={floats}", f"--type={kind}", f"--out={files[kind]}")
        measured = {kind: measure(path, folder / "held-out.txt") for kind, path in files.items()}
        shutil.copyfile(files["Q4_K_M"], MODEL)
    topics = [
        Topic(**row | {"questions": tuple(row["questions"])}) for row in json.loads((run / "topics.json").read_text())
    ]
    known, unseen = [topic for topic in topics if not topic.held_out], [topic for topic in topics if topic.held_out]
    llm, chance = packlight.load(MODEL), random.Random(1)
    asked = {"seen": ask(llm, chance.sample(known, ASKED), chance), "unseen": ask(llm, unseen, chance)}
    record = {
        **json.loads((run / "run.json").read_text()),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "files": measured,
        "greedy": packlight_command(*GREEDY).strip("\n"),
        "question": QUESTION,
        "answers": {kind: scores(rows) for kind, rows in asked.items()},
        "examples": {kind: rows[:SHOWN] for kind, rows in asked.items()},
        "sampling": " ".join(SAMPLING),
        "samples": samples(MODEL),
    }
    (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "MODEL_CARD.md").write_text(card.text(record))
    card.picture(record["log"], folder / "loss.png")


if __name__ == "__main__":
    app.run(main)
