"""Bytes a test must read and operations it must do, from those of its passes. Pure arithmetic, imports no jax."""

import itertools
from collections.abc import Sequence

from packlight.bench.cases import Case
from packlight.compile.targets.traffic import (
    attention_flops,
    head_bytes,
    head_flops,
    matrix_flops,
    text_flops,
    weight_bytes,
)
from packlight.model.gguf.reader import GGUFFile
from packlight.model.spec.cache import read_bytes
from packlight.model.spec.config import ModelConfig


def moved(case: Case, file: GGUFFile, cfg: ModelConfig, chunks: Sequence[int], kv_dtype: str) -> float:
    """Bytes read in one repetition. chunks: how a prompt's tokens are run."""
    if case.phase == "tg":
        weights = case.tokens * weight_bytes(file, cfg, case.batch)
        return weights + case.batch * sum(read_bytes(cfg, kv_dtype, 1, case.filled + i + 1) for i in range(case.tokens))
    weights = sum(weight_bytes(file, cfg, rows, head=False) for rows in chunks)
    if case.phase == "emb":
        return weights
    ends = itertools.accumulate(chunks)
    seen = sum(read_bytes(cfg, kv_dtype, rows, end) for rows, end in zip(chunks, ends, strict=True))
    return weights + head_bytes(file) + seen


def flops(case: Case, file: GGUFFile, cfg: ModelConfig) -> float:
    """Multiplications and additions of one repetition, matrices and attention; a prompt has one row of logits."""
    rows = case.batch * case.tokens
    if case.phase == "emb":
        return rows * matrix_flops(file, cfg) + case.batch * text_flops(cfg, case.tokens)
    attention = case.batch * attention_flops(cfg, case.tokens, case.filled + case.tokens)
    logits = (rows if case.phase == "tg" else 1) * head_flops(file)
    return rows * matrix_flops(file, cfg) + logits + attention
