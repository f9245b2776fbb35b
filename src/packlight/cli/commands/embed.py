"""`packlight embed`: vectors of texts."""

from absl import flags

from packlight.cli.flags import PLAN, Command
from packlight.cli.inputs import file_text, text_of
from packlight.cli.terminal import say, write, write_json
from packlight.common.errors import ConfigError


def run(values: flags.FlagValues) -> None:
    """Prints a vector of length 1 for each text: a line of numbers, or one JSON object."""
    from packlight.cli.loading import load, prepared_from
    from packlight.model.spec.pooling import pooling_of

    if (values.file is None) == (values.prompt is None):
        raise ConfigError("give either --prompt, a text, or --file, of texts one a line")
    if values.file is None:
        texts = [text_of("prompt", values.prompt)]
    else:
        texts = _lines(file_text("file", values.file))
        if not texts:
            raise ConfigError(f"--file={values.file}: holds no text")
    prepared = prepared_from(values)
    pooling = pooling_of(prepared.model, values.pooling)
    for text in texts:
        prepared.prompts.fitting(text)
    vectors = load(prepared).embed(texts, values.pooling).tolist()
    if values.json:
        write_json({"embeddings": vectors, "pooling": pooling, "dimensions": len(vectors[0])})
    else:
        write("".join(" ".join(f"{x:.8g}" for x in vector) + "\n" for vector in vectors))


def _lines(text: str) -> list[str]:
    """The lines of a file that are not blank, without carriage returns at their ends; says what is left out.

    A line ends with a newline and nothing else, as other programs count them: U+2028, a vertical tab and the like are
    text.
    """
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    blank = [number for number, line in enumerate(lines, 1) if not line.strip(" \t")]
    if blank and len(blank) < len(lines):
        some = ", ".join(map(str, blank[:8])) + (", ..." if len(blank) > 8 else "")
        say(f"blank lines get no vector: {some}")
    return [line for line in lines if line.strip(" \t")]


COMMAND = Command(
    "embed",
    "turn texts into vectors",
    "packlight embed --model=model.gguf --prompt='A text'",
    ("model", "prompt", "file", "pooling", *PLAN, "json"),
    run,
)
