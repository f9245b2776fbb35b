"""`packlight perplexity`: how well a model predicts a text."""

import contextlib
from typing import Any

from absl import flags

from packlight.cli.flags import PLAN, Command
from packlight.cli.inputs import file_text
from packlight.cli.tables import perplexity_text
from packlight.cli.terminal import Bar, write, write_json
from packlight.common.errors import ConfigError

PERPLEXITY_CONTEXT = 512  # llama.cpp's


def run(values: flags.FlagValues) -> None:
    """Measures how well the model predicts a text, in chunks of --context tokens as llama.cpp cuts it."""
    from packlight.cli.loading import load, prepared_from
    from packlight.model.spec.pooling import check_generates
    from packlight.perplexity import Base, cut, divergence, measure

    if (values.file is None) == (values.kl_divergence is None):
        raise ConfigError("give either --file, a text to predict, or --kl_divergence, predictions to compare with")
    if values.kl_divergence is not None and (values.save_logits is not None or values.context is not None):
        raise ConfigError("--kl_divergence takes text and context from its file: no --save_logits, no --context")
    length = PERPLEXITY_CONTEXT if values.context is None else values.context
    for flag, value, least in (("chunks", values.chunks, 1), ("context", length, 4)):
        if value is not None and value < least:
            raise ConfigError(f"--{flag}={value} is less than {least}")
    text = None if values.file is None else file_text("file", values.file)
    base = None if values.kl_divergence is None else Base.open(values.kl_divergence)
    if base is not None:
        length = base.tokens.shape[1]
    prepared = prepared_from(values, length)
    check_generates(prepared.model)
    if base is not None:
        base.check(prepared.model.vocab_size)
        chunks = min(len(base.tokens), values.chunks or len(base.tokens))
        steps = divergence(load(prepared), base, chunks)
    else:
        tokens = cut(prepared.tokenizer, text or "", length, values.chunks)
        chunks = len(tokens)
        steps = measure(load(prepared), tokens, values.save_logits)
    result: dict[str, Any] = {}
    with contextlib.closing(steps), Bar() as bar:
        bar.start("predict", chunks, unit="chunk")
        for so_far in steps:
            result = so_far
            bar.advance(1)
    result |= {"chunks": chunks, "context": length}
    if values.json:
        write_json(result)
    else:
        write(perplexity_text(result))


COMMAND = Command(
    "perplexity",
    "measure how well a model predicts a text",
    "packlight perplexity --model=model.gguf --file=text.txt",
    ("model", "file", "chunks", "save_logits", "kl_divergence", *PLAN, "json"),
    run,
)
