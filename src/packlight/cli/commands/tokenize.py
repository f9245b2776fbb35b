"""`packlight tokenize`: the tokens of a text."""

from absl import flags

from packlight.cli.flags import Command
from packlight.cli.inputs import given_text, model_or_demo
from packlight.cli.terminal import say, write, write_json
from packlight.common.errors import ConfigError
from packlight.common.text import shown


def run(values: flags.FlagValues) -> None:
    """Prints the id and the piece of each token, or one JSON object; how many they are goes to stderr."""
    from packlight.model.text.tokenizer import Tokenizer

    text = given_text(values)
    if text is None:
        raise ConfigError("--prompt is missing: the text to cut into tokens")
    tokenizer = Tokenizer.from_gguf(model_or_demo(values))
    ids = tokenizer.encode(text, values.add_special, values.parse_special)
    pieces = [tokenizer.piece(i) for i in ids]
    if values.json:
        tokens = [
            {"token_id": i, "token": piece.decode(errors="replace"), "bytes": list(piece)}
            for i, piece in zip(ids, pieces, strict=True)
        ]
        write_json({"count": len(ids), "token_ids": ids, "tokens": tokens})
        return
    width = len(str(max(ids, default=0)))
    write("".join(f"{i:>{width}}  '{shown(piece, 4 * len(piece))}'\n" for i, piece in zip(ids, pieces, strict=True)))
    say(f"{len(ids)} tokens")


COMMAND = Command(
    "tokenize",
    "show the tokens of a text: ids and pieces",
    "packlight tokenize --model=model.gguf --prompt='A text'",
    ("model", "prompt", "prompt_file", "parse_special", "add_special", "json"),
    run,
)
