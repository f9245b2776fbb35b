"""Everything the tables of `docs/speed.md` show, measured on synthetic models: `make bench`.

    python -m packlight.bench.suite [--only=NAME,NAME] [--models=FOLDER] [--peer_python=PATH] [--reps=5]
                                     [--results=FOLDER]

Without --only it is everything for a CPU; the entries gpu-... are for a GPU (`make bench-gpu`).
Each entry of SUITE is one run of `packlight bench` in a process of its own, whose record is added to the list in
`bench/results/NAME.json`; `bench.render` makes the tables from the last of each. Entries are independent: a run that
was cut off goes on with --only. Models are written to --models and used again when they are there.
"""

import argparse
import dataclasses
import pathlib
import subprocess
import sys
from typing import Any

from packlight.bench.render import ACCELERATED, RESULTS
from packlight.bench.shapes import SHAPES
from packlight.bench.synthetic import write
from packlight.quant.layouts import FIELDS

ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One run. shape, mix: the synthetic model, with `changes` to the shape; flags: of `packlight bench`; peer: whether
    llama.cpp runs in turn.
    """

    shape: str
    mix: str
    flags: tuple[str, ...] = ()
    changes: tuple[tuple[str, Any], ...] = ()
    peer: bool = True

    @property
    def file(self) -> str:
        changes = "".join(f"-{name}{value}" for name, value in self.changes)
        return f"{self.shape}{changes}-{self.mix}.gguf"


LONG = (("context", 8192),)
FEW, DEEP = (("layers", 4), ("vocab", 32000)), ("--gen_tokens=32", "--depth=0,4000")
USUAL = ("qwen3-4b", "gemma-3-4b", "llama-3-8b", "qwen3-30b-a3b", "glm-4.7-flash", "qwen3.5-4b", "lfm2-1.2b")
SHAPED = {
    name: Entry(name, "Q4_K_M", DEEP, FEW) for name in USUAL
} | {  # beside the Llamas, every kind of layer in each
    "gpt-oss-20b": Entry("gpt-oss-20b", "MXFP4_MOE", DEEP, FEW),
    "granite-4.0-h-micro": Entry("granite-4.0-h-micro", "Q4_K_M", DEEP, (("layers", 6), ("vocab", 32000))),
}
NUMBERS = ("F32", "F16", "BF16")  # formats in which a whole model is large
GPU = ("--config=gpu", "--paths=bf16")
BATCHES, PROMPT = (*GPU, "--batch=1,8,32"), (*GPU, "--prompt_tokens=2048", "--gen_tokens=0")
SUITE = {
    "tinyllama-1.1b": Entry("tinyllama-1.1b", "Q4_K_M", ("--depth=0,1024,4096",), LONG),
    "tinyllama-1.1b-batch": Entry("tinyllama-1.1b", "Q4_K_M", ("--prompt_tokens=0", "--batch=4,8"), LONG),
    "tinyllama-1.1b-xla": Entry(
        "tinyllama-1.1b", "Q4_K_M", (f"--config={ROOT / 'bench' / 'xla.toml'}", "--reps=3", "--gen_tokens=16")
    ),
    "llama-3.2-1b": Entry("llama-3.2-1b", "Q4_K_M"),
    "llama-2-7b": Entry("llama-2-7b", "Q4_K_M", ("--reps=3", "--prompt_tokens=128", "--gen_tokens=32")),
    "paths": Entry(
        "tinyllama-1.1b", "Q4_K_M", ("--paths=reference,f32,xla,native", "--reps=2", "--gen_tokens=4"), peer=False
    ),
    "gpu-tinyllama-1.1b": Entry("tinyllama-1.1b", "Q4_K_M", BATCHES, LONG, peer=False),
    "gpu-tinyllama-1.1b-pp2048": Entry("tinyllama-1.1b", "Q4_K_M", PROMPT, LONG, peer=False),
    "gpu-llama-3-8b": Entry("llama-3-8b", "Q4_K_M", BATCHES, peer=False),
    "gpu-llama-3-8b-pp2048": Entry("llama-3-8b", "Q4_K_M", PROMPT, peer=False),
    **{f"shape-{name}": entry for name, entry in SHAPED.items()},
    **{
        f"format-{name}": Entry(
            "tinyllama-1.1b", f"pure-{name}", ("--gen_tokens=64",), (("layers", 5),) if name in NUMBERS else ()
        )
        for name in FIELDS
    },
    **{
        f"paths-{name}": Entry(
            "tinyllama-1.1b",
            f"pure-{name}",
            ("--paths=reference,f32,xla,native", "--reps=3", "--gen_tokens=8", "--prompt_tokens=128"),
            (("layers", 2), ("vocab", 512)),
            peer=False,
        )
        for name in FIELDS
    },
}


def written(entry: Entry, models: pathlib.Path) -> pathlib.Path:
    """The entry's model, written to the folder where it is not there yet."""
    path = models / entry.file
    if not path.exists():
        write(path, dataclasses.replace(SHAPES[entry.shape], **dict(entry.changes)), entry.mix)
    return path


def run(name: str, models: pathlib.Path, peer: str | None, results: pathlib.Path, more: list[str]) -> None:
    """Measures one entry and keeps its record."""
    entry = SUITE[name]
    path = written(entry, models)
    compare = ["--compare=llama.cpp", f"--peer_python={peer}"] if peer and entry.peer else []
    command = [
        sys.executable,
        *("-m", "packlight"),
        "bench",
        f"--model={path}",
        f"--results={results / f'{name}.json'}",
        *entry.flags,
        *compare,
        *more,
    ]
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m packlight.bench.suite", description="measure what docs/speed.md shows"
    )
    parser.add_argument("--only", help=f"entries, commas between: {', '.join(SUITE)}")
    parser.add_argument("--models", default="bench-models", help="folder of the synthetic models")
    parser.add_argument("--peer_python", help="Python that has llama-cpp-python; without it no ratios are measured")
    parser.add_argument("--reps", help="repetitions, instead of each entry's own")
    parser.add_argument("--results", default=str(RESULTS), help="folder of the records")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else [name for name in SUITE if name not in ACCELERATED]
    if unknown := [name for name in names if name not in SUITE]:
        parser.error(f"--only: no entry {unknown[0]!r}; there are: {', '.join(SUITE)}")
    models, results = pathlib.Path(args.models), pathlib.Path(args.results)
    models.mkdir(parents=True, exist_ok=True)
    results.mkdir(parents=True, exist_ok=True)
    for name in names:
        print(name, file=sys.stderr)
        run(name, models, args.peer_python, results, [f"--reps={args.reps}"] if args.reps else [])


if __name__ == "__main__":
    main()
