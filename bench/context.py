"""Perplexity of a text over contexts as long as a model was trained with, twice and four times as long.

    python -m packlight.bench.context --model=FILE --file=TEXT [--tokens=16384]

The longer contexts are read with positions as they are, which a user cannot ask for, and with positions stretched
linearly and by YaRN. A table on stdout: perplexity with its standard error. The second half of each chunk is predicted,
as in llama.cpp's `llama-perplexity`; all rows read the same tokens of the text, the first ones.
"""

import argparse
import dataclasses
import pathlib
import signal
import sys
import time
from typing import Any

from packlight.common.errors import PacklightError
from packlight.llm import LLM
from packlight.perplexity import cut, measure
from packlight.prepared import Changes, Prepared, prepare

TIMES = (1, 2, 4)  # lengths of a context, in those that the model was trained with


def unstretched(path: str, context: int) -> Prepared:
    """The model with a context of any length and positions as the file has them."""
    prepared = prepare(path)
    model = dataclasses.replace(prepared.model, rope_reach=context)
    return dataclasses.replace(prepared, model=model, changes=Changes(context=context, slots=1))


def ways(path: str, trained: int, times: int) -> dict[str, Prepared]:
    """Name -> the model with a context of `times` times its own."""
    context = times * trained
    found = {"none": unstretched(path, context)}
    if times > 1:
        for kind in ("linear", "yarn"):
            found[kind] = prepare(path, context=context, slots=1, rope_scaling=kind, rope_scale=times)
    return found


def perplexity(prepared: Prepared, text: str, tokens: int) -> dict[str, Any]:
    """`packlight.perplexity.measure`'s keys, over the first `tokens` of a text in chunks that fill the context."""
    chunks = cut(prepared.tokenizer, text, prepared.context, max(1, tokens // prepared.context))
    with LLM(prepared) as llm:
        *_, found = measure(llm, chunks)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m packlight.bench.context", description="perplexity over contexts longer than the trained one"
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--file", required=True)
    parser.add_argument("--tokens", type=int, default=16384)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        text = pathlib.Path(options.file).read_text(encoding="utf-8")
        trained = prepare(options.model).model.context_length
        print(f"{'context':>8}  {'positions':<10}{'perplexity':>11}{'+-':>8}{'tokens':>8}{'s':>8}")
        for times in TIMES:
            for name, prepared in ways(options.model, trained, times).items():
                began = time.perf_counter()
                found = perplexity(prepared, text, options.tokens)
                print(
                    f"{times * trained:>8}  {name:<10}{found['perplexity']:>11.2f}{found['perplexity_error']:>8.2f}"
                    f"{found['tokens']:>8}{time.perf_counter() - began:>8.1f}",
                    flush=True,
                )
    except (OSError, UnicodeDecodeError, PacklightError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
