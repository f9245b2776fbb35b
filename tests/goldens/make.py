"""Makes the goldens of this folder again, all or those named, with llama.cpp: the extra `peers`.

python tests/goldens/make.py [NAME ...]

"arch/RECIPE" makes those of one recipe, and keeps the others.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "helpers")]

import arch_goldens  # noqa: E402
import chat_goldens  # noqa: E402
import embedding_goldens  # noqa: E402
import encoder_goldens  # noqa: E402
import format_goldens  # noqa: E402
import grammar_goldens  # noqa: E402
import perplexity_goldens  # noqa: E402
import pretokenizer_goldens  # noqa: E402
import quantize_goldens  # noqa: E402
import sampler_goldens  # noqa: E402
import text_goldens  # noqa: E402
import tokenizer_goldens  # noqa: E402
import wpm_goldens  # noqa: E402

MAKERS = {
    "arch": arch_goldens.make,
    "chat": chat_goldens.make,
    "embedding": embedding_goldens.make,
    "encoder": encoder_goldens.make,
    "format": format_goldens.make,
    "grammar": grammar_goldens.make,
    "perplexity": perplexity_goldens.make,
    "pretokenizer": pretokenizer_goldens.make,
    "quantize": quantize_goldens.make,
    "sampler": sampler_goldens.make,
    "text": text_goldens.make,
    "tokenizer": tokenizer_goldens.make,
    "wpm": wpm_goldens.make,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or MAKERS:
        kind, _, recipe = name.partition("/")
        MAKERS[kind](*([[recipe]] if recipe else []))
