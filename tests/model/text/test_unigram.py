"""T5's unigram model: against all cuts of a text, its table of replacements against a dict, and damaged tables."""

import functools
import itertools
import random
import re
import time

import numpy as np
import pytest
import vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import KEY, charsmap, unigram

from packlight.common.errors import GGUFError
from packlight.model.text.tokenizer import Tokenizer
from packlight.model.text.ugm import UGM, Replacements, Spaces

SPACE = "\u2581"
TOKENS = ("<unk>", "a", "b", "ab", "ba", "aab", SPACE, SPACE + "a", SPACE + "ab", "b" + SPACE, "\u00e9", "a\u00e9")
SCORES = (0, -2, -3, -5, -4, -6.5, -1, -3, -6, -4, -2, -4)


def made(scores=SCORES, free=(), replacements=None, spaces=Spaces(prefix=True, merged=False)) -> UGM:  # noqa: B008
    types = np.array([2] + [1] * (len(TOKENS) - 1), np.int32)
    vocab = {token: i for i, token in enumerate(TOKENS)}
    is_free = np.array([token in free for token in TOKENS])
    return UGM(vocab, np.array(scores, np.float32), types, is_free, 0, replacements, spaces)


def every_cut(text: str) -> list[list[int]]:
    """All ways to cut `text` into tokens and unknown characters."""
    cuts = [[]] if not text else []
    for n in range(1, len(text) + 1):
        known = text[:n] in TOKENS[1:]
        if known or n == 1:
            cuts += [[TOKENS.index(text[:n]) if known else 0, *rest] for rest in every_cut(text[n:])]
    return cuts


@settings(deadline=None, max_examples=200)
@given(st.text("ab \u00e9c", max_size=9))
def test_no_cut_scores_higher(text):
    coder, worst = made(), min(SCORES) - 10
    text = (SPACE if text.strip(" ") else "") + text.replace(" ", SPACE)

    def score(ids):
        return sum(SCORES[i] if i else worst for i in ids)

    alone = coder.encode(text, begins=False)
    best = max(map(score, every_cut(text)))
    merged = [[i for i, group in itertools.groupby(cut) for _ in group if i or not _] for cut in every_cut(text)]
    assert merged is not None
    assert any(
        [i for n, i in enumerate(cut) if i or not n or cut[n - 1]] == alone
        for cut in every_cut(text)
        if score(cut) == best
    )
