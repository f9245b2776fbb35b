"""The first layers of a model as a model of its own: a draft model where there is no smaller brother.

    python -m packlight.bench.shallow --model=FILE --layers=4 --out=FILE [--faded=FILE --share=0.1]

Every layer adds to what the ones before have found, so the first layers with the model's own head guess what all of
them say, more or less. Random layers do not: there the first ones are hardly ever right. --faded writes the whole model
too, but with less of what the later layers read, which takes as long to run, and whose first layers are right the more
often the less that is. It knows the names of tensors and the container. Imports no jax.
"""

import argparse
import dataclasses
import os
import sys

import numpy as np

from packlight.common.errors import ConfigError, PacklightError
from packlight.common.files import whole_file
from packlight.common.text import shown_path
from packlight.model.gguf.reader import TensorInfo, open_gguf, read_tensor
from packlight.model.gguf.writer import write_like


def fade(model: str | os.PathLike[str], layers: int, share: float, out: str | os.PathLike[str]) -> None:
    """Writes a model whose layers behind the first so many read only a share of their inputs: their norms' weights are
    that much smaller. Raises GGUFError, OSError.
    """
    file = open_gguf(model)

    def packed(info: TensorInfo) -> np.ndarray:
        blocks = read_tensor(info)
        later = info.name.startswith("blk.") and int(info.name.split(".")[1]) >= layers
        if not later or not info.name.endswith("_norm.weight"):
            return blocks
        return (np.float32(share) * blocks.view(np.float32)).view(np.uint8)

    formats = {name: info.format.name for name, info in file.tensors.items()}
    with whole_file(os.fspath(out)) as partial:
        write_like(file, partial, formats, map(packed, file.tensors.values()))


def write(model: str | os.PathLike[str], layers: int, out: str | os.PathLike[str]) -> int:
    """Writes the first layers of a model with all that is outside of layers, whole or not at all; returns its bytes.

    Raises ConfigError where it has no so many layers, GGUFError, OSError.
    """
    file = open_gguf(model)
    key = f"{file.metadata['general.architecture']}.block_count"
    if not 1 <= layers <= file.metadata[key]:
        raise ConfigError(f"{shown_path(file.path)} has {file.metadata[key]} layers, not {layers}")
    kept = {
        name: info
        for name, info in file.tensors.items()
        if not name.startswith("blk.") or int(name.split(".")[1]) < layers
    }
    formats = {name: info.format.name for name, info in kept.items()}
    packed = map(read_tensor, kept.values())
    with whole_file(os.fspath(out)) as partial:
        write_like(dataclasses.replace(file, tensors=kept), partial, formats, packed, numbers={key: layers})
    return os.path.getsize(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m packlight.bench.shallow", description="write a model's first layers as a model"
    )
    parser.add_argument("--model", required=True, metavar="FILE")
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--out", required=True, metavar="FILE")
    parser.add_argument("--faded", metavar="FILE")
    parser.add_argument("--share", type=float, default=0.1)
    options = parser.parse_args()
    try:
        if options.faded is not None:
            fade(options.model, options.layers, options.share, options.faded)
        print(f"{options.out}: {write(options.model, options.layers, options.out):,} bytes")
    except (PacklightError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
