"""What is measured, named as llama-bench names it: `pp512`, `tg128`, `tg128 @ d1024`, `tg128 b4`; and `emb512 b16`.
Imports no jax.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

BESIDE = 64  # tokens


@dataclasses.dataclass(frozen=True)
class Case:
    """One test. phase "pp": a prompt of `tokens` from an empty cache, to its first answer's logits; "tg": `tokens`
    tokens one by one for each of `batch` sequences that hold `depth` tokens already; "emb": vectors of `batch` texts of
    `tokens` tokens.
    """

    phase: str
    tokens: int
    batch: int = 1
    depth: int = 0

    @property
    def name(self) -> str:
        batch = f" b{self.batch}" if self.batch > 1 else ""
        return f"{self.phase}{self.tokens}{batch}{f' @ d{self.depth}' if self.depth else ''}"

    @property
    def filled(self) -> int:
        """Tokens in each sequence before the clock starts: a model writes nothing from nothing, so at least one."""
        return max(1, self.depth) if self.phase == "tg" else 0

    @property
    def context(self) -> int:
        """Tokens a sequence must hold; one more than is generated, so that no request ends of itself, and of several
        those that the first one gets while the others' prompts are read.
        """
        if self.phase == "emb":
            return self.tokens
        return self.filled + self.tokens + 2 + (BESIDE if self.batch > 1 else 0)

    def prompts(self, vocab: int) -> list[list[int]]:
        """The random token ids of each sequence, the same in every program: `tokens` of them, or `filled` ones."""
        rng = np.random.default_rng(0)
        count = self.filled if self.phase == "tg" else self.tokens
        return rng.integers(0, vocab, (self.batch, count)).tolist()


@dataclasses.dataclass(frozen=True)
class Sample:
    """One repetition: seconds from start to end, and between two tokens of a sequence, on average where a launch
    gives several (empty where not known)."""

    seconds: float
    gaps: list[float] = dataclasses.field(default_factory=list)


def embedding_cases(tokens: int, batch: Sequence[int]) -> list[Case]:
    """Texts of so many tokens, by as many at a time."""
    return [Case("emb", tokens, b) for b in batch]


def make_cases(prompt_tokens: int, gen_tokens: int, batch: Sequence[int], depth: Sequence[int]) -> list[Case]:
    """One prompt, then every batch at every depth; a count of 0 tokens leaves its tests out."""
    prompt = [Case("pp", prompt_tokens)] if prompt_tokens else []
    return prompt + [Case("tg", gen_tokens, b, d) for b in batch for d in depth if gen_tokens]
