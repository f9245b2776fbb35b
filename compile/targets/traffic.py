"""Bytes a pass must read and operations it must do, whatever program runs it. Pure arithmetic, imports no jax.

Bytes: packed weights once per pass, of a mixture's experts as many as the pass's tokens are expected to choose, one
row of what is looked up per token, and the cache once per pass. Activations, scratch and writes are not counted.
"""

import math

from packlight.compile.plan import Phase, StepKey
from packlight.model.gguf.reader import GGUFFile, TensorInfo
from packlight.model.spec.cache import read_bytes
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.parts.attention import AttentionPart
from packlight.model.spec.parts.deltanet import DeltaNetPart
from packlight.model.spec.parts.mla import MlaPart
from packlight.model.spec.state import CACHE_TILE
from packlight.model.spec.weights import declare, read_tensors


def weight_bytes(file: GGUFFile, cfg: ModelConfig, rows: int, head: bool = True) -> float:
    """Packed bytes that one pass over `rows` tokens reads."""
    total, looked_up = 0.0, _looked_up(cfg)
    for info in read_tensors(file, cfg):
        if info.name in looked_up:
            total += min(rows, info.shape[0]) * info.nbytes / info.shape[0]
        elif info.name != "output.weight":
            total += info.nbytes * _chosen(cfg, info.name, rows)
    return total + (head_bytes(file) if head else 0)


def _looked_up(cfg: ModelConfig) -> set[str]:
    return {name for weight in declare(cfg) if weight.looked_up for name in weight.tensors}


def head_bytes(file: GGUFFile) -> int:
    """Packed bytes of the output head, which may be the embedding."""
    return file.tensors.get("output.weight", file.tensors["token_embd.weight"]).nbytes


def matrix_flops(file: GGUFFile, cfg: ModelConfig) -> float:
    """Multiplications and additions of one token in every matrix but the head and those that are looked up."""
    others = {"output.weight", *_looked_up(cfg)}
    rest = (info for info in read_tensors(file, cfg) if info.name not in others)
    return sum(2.0 * _used(cfg, info.name, info) for info in rest if len(info.shape) > 1)


def head_flops(file: GGUFFile) -> float:
    """Of one row of logits."""
    return 2.0 * math.prod(file.tensors.get("output.weight", file.tensors["token_embd.weight"]).shape)


def attention_flops(cfg: ModelConfig, rows: int, length: int) -> float:
    """Of `rows` queries of a slot in every layer, the last of which sees `length` keys, or a window of them; and of as
    many tokens in layers that remember.
    """
    total = 0.0
    for mixer, layers in cfg.mixers.items():
        window = mixer.window if isinstance(mixer, AttentionPart) else 0
        seen = sum(min(position, window or position) for position in range(length - rows + 1, length + 1))
        match mixer:
            case AttentionPart():
                each = 2 * mixer.width * seen
            case MlaPart() if mixer.expands(rows):  # keys and values of positions before the step's are made anew
                made = mixer.kv_rank * (mixer.plain + mixer.value_length) * (length - rows)
                each = (mixer.key_length + mixer.value_length) * seen + made
            case MlaPart():
                each = (mixer.width + mixer.kv_rank) * seen
            case DeltaNetPart():  # asked with the key, changed, asked with the query
                each = 3 * mixer.width**2 * rows
            case _:
                continue
        total += 2.0 * layers * mixer.heads * each
    return total


def text_flops(cfg: ModelConfig, length: int) -> float:
    """Of attention in every layer of a whole text; without causality each token sees all others."""
    if cfg.causal:
        return attention_flops(cfg, length, length)
    parts = ((part, layers) for part, layers in cfg.mixers.items() if isinstance(part, AttentionPart))
    return sum(4.0 * layers * p.heads * p.width * length * min(length, p.window or length) for p, layers in parts)


def step_bytes(key: StepKey, file: GGUFFile, cfg: ModelConfig, kv_dtype: str) -> float:
    """Bytes that a step must read when its slots are full and it gives all its tokens."""
    if key.phase is Phase.ENCODE:
        return weight_bytes(file, cfg, key.rows * key.length, head=False)
    several = key.phase in (Phase.PREFILL, Phase.VERIFY)
    state = read_bytes(cfg, kv_dtype, key.rows if several else 1, key.length)
    match key.phase:
        case Phase.PREFILL:
            return weight_bytes(file, cfg, key.rows, head=False) + state
        case Phase.HEAD | Phase.SCORE:
            return head_bytes(file)
        case Phase.DECODE:
            return key.tokens * (weight_bytes(file, cfg, key.rows) + key.rows * state)
        case Phase.VERIFY:
            return weight_bytes(file, cfg, key.rows) + state
        case Phase.COPY:
            return state
        case Phase.SAVE | Phase.LOAD:  # a block of positions or a text's end: about what a text of one tile has
            return read_bytes(cfg, kv_dtype, 1, min(key.length, CACHE_TILE))


def passes(key: StepKey) -> int:
    """How often a step goes over the layers when it gives all its tokens."""
    match key.phase:
        case Phase.DECODE:
            return key.tokens
        case Phase.PREFILL | Phase.VERIFY | Phase.ENCODE:
            return 1
        case _:
            return 0


def step_flops(key: StepKey, file: GGUFFile, cfg: ModelConfig) -> float:
    """Operations of a step when its slots are full; a prompt's last tokens see about all of the cache."""
    match key.phase:
        case Phase.PREFILL:
            return key.rows * matrix_flops(file, cfg) + attention_flops(cfg, key.rows, key.length)
        case Phase.ENCODE:
            each = key.length * matrix_flops(file, cfg) + text_flops(cfg, key.length)
            return key.rows * each
        case Phase.HEAD | Phase.SCORE:
            return key.rows * head_flops(file)
        case Phase.DECODE:
            each = matrix_flops(file, cfg) + head_flops(file) + attention_flops(cfg, 1, key.length)
            return key.tokens * key.rows * each
        case Phase.VERIFY:
            each = matrix_flops(file, cfg) + head_flops(file)
            return key.rows * each + attention_flops(cfg, key.rows, key.length)
        case Phase.COPY | Phase.SAVE | Phase.LOAD:
            return 0.0


def _chosen(cfg: ModelConfig, name: str, rows: int) -> float:
    """The share of a tensor that `rows` tokens read: all of it but for experts, each chosen by chance."""
    if "_exps." not in name:
        return 1.0
    return 1 - (1 - cfg.expert_used_count / cfg.expert_count) ** rows


def _used(cfg: ModelConfig, name: str, info: TensorInfo) -> float:
    """Weights of a tensor that one token is multiplied with."""
    share = cfg.expert_used_count / cfg.expert_count if "_exps." in name else 1.0
    return share * math.prod(info.shape)
