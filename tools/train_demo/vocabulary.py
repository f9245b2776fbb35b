"""A byte-level BPE of the demo model's own, in GPT-2's form: what GGUF calls model `gpt2`, pre-tokenizer `gpt-2`.

One special token both begins and ends a document. Knows texts and ids, not where either comes from.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers

DOCUMENT = "<|endoftext|>"  # id 0


def learn(texts: Sequence[str], size: int) -> tokenizers.Tokenizer:
    """A tokenizer of `size` tokens whose merges are the commonest of `texts`."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[DOCUMENT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),  # any text encodes
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: tokenizers.Tokenizer, texts: Iterable[str]) -> list[np.ndarray]:
    """Each text's ids, int32 (tokens,), the document token before them."""
    return [np.array([0, *encoded.ids], np.int32) for encoded in tokenizer.encode_batch(list(texts))]
