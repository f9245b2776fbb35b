"""A byte-level BPE of the demo model's own, in GPT-2's form: what GGUF calls model `gpt2`, pre-tokenizer `gpt-2`.

One special token both begins and ends a document; three more tell who speaks in a conversation. Knows texts and ids,
not where either comes from.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers

DOCUMENT, USER, ASSISTANT, END = SPECIAL = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>")  # ids 0 to 3
USER_ID, END_ID = SPECIAL.index(USER), SPECIAL.index(END)
# what `conversation` writes, for the messages of a chat
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ('user', 'assistant') %}"
    "{{ raise_exception('the demo model knows the roles user and assistant, not ' ~ message.role) }}"
    "{% endif %}"
    "{{ '<|' ~ message.role ~ '|>' }}"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content or () %}"
    "{% if part.type != 'text' %}{{ raise_exception('the demo model reads text only') }}{% endif %}"
    "{{ part.text }}{% endfor %}{% endif %}"
    "{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def learn(texts: Sequence[str], size: int) -> tokenizers.Tokenizer:
    """A tokenizer of `size` tokens whose merges are the commonest of `texts`."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),  # any text encodes
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def conversation(pairs: Iterable[tuple[str, str]]) -> str:
    """Questions and answers as one text, without the document token before it."""
    return "".join(f"{USER}{question}{END}{ASSISTANT}{answer}{END}" for question, answer in pairs)


def encode(tokenizer: tokenizers.Tokenizer, texts: Iterable[str]) -> list[np.ndarray]:
    """Each text's ids, int32 (tokens,), the document token before them."""
    return [np.array([0, *encoded.ids], np.int32) for encoded in tokenizer.encode_batch(list(texts))]
