"""What the programs share: the path under test, random weights, profiles, and where results go."""

import functools
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from packlight.bench.accelerator import Accelerator
from packlight.bench.blocks import random_blocks
from packlight.quant.formats.table import FORMATS
from packlight.quant.layouts import pack


def on_gpu() -> bool:
    """False in a rehearsal, where a CPU stands for the GPU and everything is small."""
    return jax.default_backend() == "gpu"


def path_and_layout() -> tuple[str, str]:
    """The kernel path that is looked at, and the layout that it reads."""
    return ("mosaic_gpu", "words") if on_gpu() else ("xla", "ggml")


@functools.cache
def limits() -> dict[str, Any]:
    """Copy bandwidth and rate of the bfloat16 product, measured here."""
    small = {} if on_gpu() else {"nbytes": 1 << 24, "side": 256}
    return Accelerator(jax.devices()[0], **small).ask()


def weights(qtype: str, out: int, width: int, std: float, seed: int) -> np.ndarray:
    """A random matrix in ggml's layout: uint8 (out, blocks of a row, bytes of a block)."""
    fmt = FORMATS[qtype]
    blocks = width // fmt.elements
    return random_blocks(fmt, out * blocks, std, np.random.default_rng(seed)).reshape(out, blocks, fmt.bytes)


def packed(blocks: np.ndarray, qtype: str, layout: str) -> np.ndarray:
    """The same matrix in the layout of a kernel path."""
    return blocks if layout == "ggml" else pack(blocks, qtype, layout)


def save(name: str, what: Any) -> None:
    """Writes a result into the folder OUT. Each case is saved as it comes, so that a time limit loses none."""
    path = pathlib.Path(os.environ.get("OUT", "."), name)
    path.write_text(json.dumps(what, indent=0), encoding="utf-8")


def profiled(run: Callable[[], Any]) -> Any:
    """The profile of one call."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        return jax.profiler.ProfileData.from_file(str(file))


def events(profile: Any) -> Iterator[tuple[bool, Any]]:
    """Every event of a profile, and whether a GPU's stream ran it."""
    for plane in profile.planes:
        for line in plane.lines:
            on_stream = plane.name.startswith("/device:GPU") and line.name.startswith("Stream")
            for event in line.events:
                yield on_stream, event
