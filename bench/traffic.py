"""Bytes a test must read and operations it must do, whatever program runs it. Pure arithmetic, imports no jax.

Bytes: packed weights once per pass, of a mixture's experts as many as the pass's tokens are expected to choose, one
row of the embedding per token, and the cache once per pass. Activations, scratch and writes are not counted.
"""

import math
from collections.abc import Sequence

from bench.cases import Case
from model.config import ModelConfig
from model.reader import GGUFFile, TensorInfo


def weight_bytes(file: GGUFFile, cfg: ModelConfig, rows: int, head: bool = True) -> float:
    """Packed bytes that one pass over `rows` tokens reads."""
    total = 0.0
    for name, info in file.tensors.items():
        match name:
            case "token_embd.weight":
                looked_up = rows * info.nbytes / info.shape[0]
                total += looked_up + (info.nbytes if head and "output.weight" not in file.tensors else 0)
            case "output.weight":
                total += info.nbytes if head else 0
            case _:
                total += info.nbytes * _chosen(cfg, name, rows)
    return total


def _chosen(cfg: ModelConfig, name: str, rows: int) -> float:
    """The share of a tensor that `rows` tokens read: all of it but for experts, each chosen by chance."""
    if "_exps." not in name:
        return 1.0
    return 1 - (1 - cfg.expert_used_count / cfg.expert_count) ** rows


def kv_bytes(cfg: ModelConfig, positions: float, itemsize: int) -> float:
    """Bytes of `positions` cached keys and values in every layer."""
    return 2 * cfg.block_count * cfg.head_count_kv * cfg.key_length * itemsize * positions


def moved(case: Case, file: GGUFFile, cfg: ModelConfig, chunks: Sequence[int], itemsize: int) -> float:
    """Bytes read in one repetition. chunks: how a prompt's tokens are run; itemsize: of the cache."""
    if case.phase == "tg":
        positions = sum(case.filled + i + 1 for i in range(case.tokens))
        weights = case.tokens * weight_bytes(file, cfg, case.batch)
        return weights + case.batch * kv_bytes(cfg, positions, itemsize)
    weights = sum(weight_bytes(file, cfg, rows, head=False) for rows in chunks)
    once = weight_bytes(file, cfg, 0) - weight_bytes(file, cfg, 0, head=False)
    return weights + once + kv_bytes(cfg, sum(sum(chunks[: i + 1]) for i in range(len(chunks))), itemsize)


def flops(case: Case, file: GGUFFile, cfg: ModelConfig) -> float:
    """Multiplications and additions of one repetition, matrices and attention; a prompt has one row of logits."""
    rows = case.batch * case.tokens
    matrices = sum(2.0 * _used(cfg, name, info) for name, info in file.tensors.items() if len(info.shape) > 1)
    embedding = file.tensors["token_embd.weight"]
    matrices -= 2.0 * math.prod(embedding.shape)  # looked up, or counted as the head
    head = 2.0 * math.prod(file.tensors.get("output.weight", embedding).shape)
    if "output.weight" in file.tensors:
        matrices -= head
    positions = case.batch * sum(case.filled + i + 1 for i in range(case.tokens))
    attention = 4.0 * cfg.block_count * cfg.head_count * cfg.key_length * positions
    return rows * matrices + (rows if case.phase == "tg" else 1) * head + attention


def _used(cfg: ModelConfig, name: str, info: TensorInfo) -> float:
    """Weights of a tensor that one token is multiplied with."""
    share = cfg.expert_used_count / cfg.expert_count if "_exps." in name else 1.0
    return share * math.prod(info.shape)
