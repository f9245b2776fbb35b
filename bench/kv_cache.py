"""Keys and values in 8 and 4 bits beside float16: the speed of text behind a long one, memory, what predictions lose.

    python -m packlight.bench.kv_cache --model=FILE [--filled=4000] [--tokens=16] [--rounds=9]
    python -m packlight.bench.kv_cache --model=FILE --file=TEXT [--length=512] [--chunks=16]

The first reads a prompt of `filled` random tokens into a cache of each type, all in one process, and then lets each
write so many tokens behind it, in turn. A table on stdout: bytes of the cache, milliseconds a token and the speed
beside float16's, as medians with the middle half. The second compares predictions of a text with those of a float32
cache: mean Kullback-Leibler divergence with its standard error, perplexity, and how often the most probable token is
the same, as in llama.cpp's `llama-perplexity`.
"""

import argparse
import collections
import pathlib
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

import packlight
from packlight.common.errors import PacklightError
from packlight.common.text import megabytes
from packlight.model.spec.cache import check_kv_dtype
from packlight.perplexity import Base, cut, divergence, measure
from packlight.prepared import KVType, prepare

PLAIN: KVType = "float16"
TYPES: tuple[KVType, ...] = (PLAIN, "q8_0", "q4_0")
EXACT: KVType = "float32"  # what predictions are compared with


def types_of(model: str) -> list[KVType]:
    """The types that the model's cache can have; of another one stderr says why not."""
    cfg, possible = prepare(model).model, []
    for kind in TYPES:
        if reason := check_kv_dtype(cfg, kind):
            print(f"{kind} is left out: {reason}", file=sys.stderr)
        else:
            possible.append(kind)
    return possible


def speeds(
    model: str, types: Sequence[KVType], filled: int, tokens: int, rounds: int
) -> tuple[dict[KVType, int], list[dict[KVType, float]]]:
    """Bytes of each type's cache; and of each round, milliseconds a token, the types in turn."""
    context = filled + tokens + 1
    llms = {kind: packlight.load(model, context=context, slots=1, kv_type=kind) for kind in types}
    prompt = np.random.default_rng(0).integers(3, llms[PLAIN].model.vocab_size, filled).tolist()
    asked: packlight.Sampling = {"temperature": 0, "max_tokens": tokens, "ignore_eos": True}
    found: list[dict[KVType, float]] = []
    for number in range(1 + rounds):  # the first one reads the prompt
        made: dict[KVType, float] = {}
        for kind in types if number % 2 else reversed(types):
            done = llms[kind].generate(prompt, reuse_prefix=True, **asked)
            assert number == 0 or done.cached_tokens == filled - 1, done.cached_tokens
            made[kind] = 1e3 / (done.timings["decode_tok_s"] or 0)
        found.append(made)
        print(
            number, ", ".join(f"{kind} {ms:.2f} ms a token" for kind, ms in made.items()), file=sys.stderr, flush=True
        )
    return {kind: llms[kind].kv_bytes for kind in types}, found[1:]


def divergences(
    model: str, types: Sequence[KVType], text: str, length: int, chunks: int
) -> dict[KVType, dict[str, Any]]:
    """`packlight.perplexity.divergence`'s keys of each type, against a float32 cache."""

    def loaded(kind: KVType) -> packlight.LLM:
        return packlight.load(model, context=length, slots=1, kv_type=kind)

    def last(results: Any) -> dict[str, Any]:
        return collections.deque(results, 1).pop()

    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "base")
        with loaded(EXACT) as llm:
            last(measure(llm, cut(llm.tokenizer, text, length, chunks), path))
        base, found = Base.open(path), {}
        for kind in types:
            with loaded(kind) as llm:
                found[kind] = last(divergence(llm, base, chunks))
    return found


def middle(values: list[float]) -> str:
    """A median and the middle half."""
    low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):.3f} ({low:.3f}-{high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m packlight.bench.kv_cache", description="caches in 8 and 4 bits beside one in float16"
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--filled", type=int, default=4000)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--file", help="compare predictions of this text instead")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=16)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        types = types_of(options.model)
        if options.file:
            text = pathlib.Path(options.file).read_text(encoding="utf-8")
            compared = divergences(options.model, types, text, options.length, options.chunks)
            print(f"{'cache':<10}{'KL divergence':>24}{'perplexity':>12}{'same top':>10}{'tokens':>8}")
            for kind, found in compared.items():
                divergent = f"{found['kl_divergence']:.6f} +- {found['kl_divergence_error']:.6f}"
                print(
                    f"{kind:<10}{divergent:>24}{found['perplexity']:>12.3f}{found['same_top']:>10.4f}"
                    f"{found['tokens']:>8}"
                )
            return
        held, rounds = speeds(options.model, types, options.filled, options.tokens, options.rounds)
        print(f"{'cache':<10}{'memory':>14}{'ms a token':>26}{'times as fast as ' + PLAIN:>34}")
        for kind in types:
            ratios = [made[PLAIN] / made[kind] for made in rounds]
            times = middle([made[kind] for made in rounds])
            print(f"{kind:<10}{megabytes(held[kind]):>14}{times:>26}{middle(ratios):>34}")
    except (OSError, UnicodeDecodeError, PacklightError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
