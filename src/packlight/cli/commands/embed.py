"""`packlight embed`: vectors of texts."""

from absl import flags

from packlight.cli.flags import PLAN, Command
from packlight.cli.inputs import lines_of, text_of
from packlight.cli.terminal import write, write_json
from packlight.common.errors import ConfigError


def run(values: flags.FlagValues) -> None:
    """Prints a vector of length 1 for each text, of a reranker its scores: a line of numbers, or one JSON object."""
    from packlight.cli.loading import load, prepared_from
    from packlight.model.spec.pooling import pooling_of

    if (values.file is None) == (values.prompt is None):
        raise ConfigError("give either --prompt, a text, or --file, of texts one a line")
    if values.file is None:
        texts = [text_of("prompt", values.prompt)]
    else:
        texts = lines_of("file", values.file, "get no vector")
    prepared = prepared_from(values)
    pooling = pooling_of(prepared.model, values.pooling)
    if pooling == "none" and not values.json:
        raise ConfigError("--pooling=none is for --json, which is missing: each text has a vector for every token")
    for text in texts:
        prepared.prompts.fitting(text)
    found = load(prepared).embed(texts, values.pooling)
    vectors = [vector.tolist() for vector in found]
    if values.json:
        write_json({"embeddings": vectors, "pooling": pooling, "dimensions": found[0].shape[-1]})
    else:
        write("".join(" ".join(f"{x:.8g}" for x in vector) + "\n" for vector in vectors))


COMMAND = Command(
    "embed",
    "turn texts into vectors",
    "packlight embed --model=model.gguf --prompt='A text'",
    ("model", "prompt", "file", "pooling", *PLAN, "json"),
    run,
)
