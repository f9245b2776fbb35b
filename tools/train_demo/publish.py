"""Puts a trained model into `demo/`: `python -m tools.train_demo.publish --run=FOLDER`, the folder that `train` wrote.

The best checkpoint becomes a file of floats, `run.py quantize` makes the small ones, `run.py perplexity` measures them
on the held-out text, `run.py generate` writes the sample texts; model card and picture are made of what was recorded.
"""

import json
import pathlib
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import tokenizers
from absl import app, flags

from packlight.demo import MODEL
from tools.train_demo import card, export
from tools.train_demo.network import Shape

RUN = flags.DEFINE_string("run", None, "folder that training wrote", required=True)

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPTS = ("A Python function", "Return the number of", "The list is", "If the file does not exist,", "This class")
# of PROMPTS the one whose greedy text int8 and float32 activations agree on: a test repeats it on any machine
GREEDY = ("--prompt=If the file does not exist,", "--temperature=0", "--max_tokens=24")
SAMPLING = ("--temperature=0.5", "--seed=1", "--max_tokens=80")


def packlight(*arguments: str) -> str:
    """What a command of this checkout writes to stdout."""
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def measure(model: pathlib.Path, held_out: pathlib.Path) -> dict[str, Any]:
    """Size and held-out perplexity of a file."""
    measured = json.loads(packlight("perplexity", f"--model={model}", f"--file={held_out}", "--json"))
    return {"bytes": model.stat().st_size} | {key: measured[key] for key in ("perplexity", "perplexity_error")}


def samples(model: pathlib.Path) -> list[dict[str, str]]:
    """A continuation of each of PROMPTS."""
    texts = [packlight(f"--model={model}", f"--prompt={prompt}", *SAMPLING) for prompt in PROMPTS]
    return [{"prompt": prompt, "text": text.strip("\n")} for prompt, text in zip(PROMPTS, texts, strict=True)]


def main(_: Sequence[str]) -> None:
    run, folder = pathlib.Path(RUN.value), MODEL.parent
    shape, params = Shape(), pickle.loads((run / "best.pickle").read_bytes())
    shutil.copyfile(run / "held-out.txt", folder / "held-out.txt")
    with tempfile.TemporaryDirectory() as scratch:
        floats = pathlib.Path(scratch, "F32.gguf")
        export.write(floats, params, shape, tokenizers.Tokenizer.from_file(str(run / "tokenizer.json")))
        files = {"F32": floats}
        for kind in ("Q8_0", "Q4_K_M"):
            files[kind] = pathlib.Path(scratch, f"{kind}.gguf")
            packlight("quantize", f"--model={floats}", f"--type={kind}", f"--out={files[kind]}")
        measured = {kind: measure(path, folder / "held-out.txt") for kind, path in files.items()}
        shutil.copyfile(files["Q4_K_M"], MODEL)
    record = {
        **json.loads((run / "run.json").read_text()),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "files": measured,
        "greedy": packlight(f"--model={MODEL}", *GREEDY).strip("\n"),
        "sampling": " ".join(SAMPLING),
        "samples": samples(MODEL),
    }
    (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "MODEL_CARD.md").write_text(card.text(record))
    card.picture(record["log"], folder / "loss.png")


if __name__ == "__main__":
    app.run(main)
