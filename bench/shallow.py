"""The first layers of a model as a model of its own: a draft model where there is no smaller brother.

    python -m packlight.bench.shallow --model=FILE --layers=4 --out=FILE

Every layer adds to what the ones before have found, so the first layers with the model's own head guess what all of
them say, more or less. It knows the names of tensors and the container. Imports no jax.
"""

import argparse
import dataclasses
import os
import sys

from packlight.common.errors import ConfigError, PacklightError
from packlight.common.files import whole_file
from packlight.common.text import shown_path
from packlight.model.gguf.reader import open_gguf, read_tensor
from packlight.model.gguf.writer import write_like


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
    options = parser.parse_args()
    try:
        print(f"{options.out}: {write(options.model, options.layers, options.out):,} bytes")
    except (PacklightError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
