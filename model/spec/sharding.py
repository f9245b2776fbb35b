"""How the devices of a mesh share a model: which part of every weight each one holds. Pure arithmetic, imports no jax.

Two mesh axes: "data" shares the cache's slots, "tensor" the weights. Along "tensor" a branch of a layer is cut twice:
the matrices that open it (q, k, v; gate, up) by rows, so that a device computes its own heads or features, and the one
that closes it (`attn_output`, `ffn_down`) along its inputs, by whole blocks, so that one sum over the devices ends the
branch. Where blocks do not divide, they are padded with zero blocks if that costs little; else the closing matrix is
cut by rows and the activations are gathered before and after. Experts, and the rows of embedding and head, are shared
out whole.
Source: Megatron-LM (1909.08053).
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

from packlight.model.spec.config import ModelConfig
from packlight.model.spec.weights import Weight
from packlight.quant.formats.table import FORMATS

DATA, TENSOR = "data", "tensor"  # the mesh's axes
MOST_PADDING = 1 / 8  # zero blocks a device may hold, of its own real ones, before activations are gathered instead

Axis = Literal["", "rows", "inputs", "experts"]

# weight -> the axis along which it is cut, and the logical axes (letters of `model.__init__`) that lie on it one after
# the other. What is not here (norms, router, frequencies) every device holds whole; a bias is cut as its matrix's rows.
TABLE: dict[str, tuple[Axis, str]] = {
    "token_embd": ("rows", "V"),
    "output": ("rows", "V"),
    "attn_q": ("rows", "H"),
    "attn_k": ("rows", "K"),
    "attn_v": ("rows", "K"),
    "attn_qkv": ("rows", "HKK"),
    "attn_sinks": ("rows", "H"),
    "attn_output": ("inputs", "H"),
    "ffn_gate": ("rows", "F"),
    "ffn_up": ("rows", "F"),
    "ffn_down": ("inputs", "F"),
    "ffn_gate_exps": ("experts", "E"),
    "ffn_up_exps": ("experts", "E"),
    "ffn_down_exps": ("experts", "E"),
}
WHOLE_NORMS = {"attn_q_norm": "H", "attn_k_norm": "K"}  # where one norm spans all heads
Closing = Literal["inputs", "rows"]


@dataclasses.dataclass(frozen=True)
class Split:
    """How one model is cut among `tensor` devices, and its slots among `data` groups of them. Static.

    heads: each device computes its own query heads, with the kv heads they read (several devices may hold the same
        one); else every device computes all heads, and q, k and v are gathered.
    attn_output, ffn_down: a closing matrix is cut along its "inputs" and the results are summed, or by "rows", and its
        inputs and results are gathered.
    ffn: features of the feed-forward part that a device computes, padding included; experts are not cut.
    """

    data: int = 1
    tensor: int = 1
    heads: bool = True
    attn_output: Closing = "inputs"
    ffn_down: Closing = "inputs"
    ffn: int = 0

    def local(self, cfg: ModelConfig) -> ModelConfig:
        """The hyperparameters that one device's computation sees."""
        if self.tensor == 1 or not self.heads:
            return cfg
        kv_heads = max(1, cfg.head_count_kv // self.tensor)
        return dataclasses.replace(cfg, head_count=cfg.head_count // self.tensor, head_count_kv=kv_heads)

    def part(self, cfg: ModelConfig, weight: Weight) -> Weight:
        """`weight` with the shape that one device holds of it."""
        share = cut(cfg, self, weight, 0)
        if not share.axis:
            return weight
        shape = list(weight.shape)
        shape[_position(weight, share.axis)] = share.size
        return dataclasses.replace(weight, shape=tuple(shape))

    def cache_heads(self, cfg: ModelConfig) -> int:
        """kv heads of the whole cache, repeated ones counted."""
        return self.local(cfg).head_count_kv * (self.tensor if self.heads else 1)

    def __str__(self) -> str:
        """In words, for the plan."""
        attention = "own heads" if self.heads else "all heads on every device"
        ways = {"inputs": "summed", "rows": "gathered"}
        return (
            f"mesh {DATA} {self.data}, {TENSOR} {self.tensor}: {attention}; "
            f"attn_output {ways[self.attn_output]}, ffn_down {ways[self.ffn_down]}"
        )


WHOLE = Split()


class Piece(NamedTuple):
    """`length` rows, features or experts of a weight from `start` on, which a device keeps at `to`."""

    to: int
    start: int
    length: int


class Cut(NamedTuple):
    """One weight's part on a device: `size` rows, features or experts along `axis`, of which `pieces` are real.

    axis "" stands for a weight that every device holds whole.
    """

    axis: Axis = ""
    size: int = 0
    pieces: tuple[Piece, ...] = ()


def make_split(cfg: ModelConfig, used: tuple[Weight, ...], formats: Mapping[str, str], data: int, tensor: int) -> Split:
    """The split of a model whose tensors have `formats` on a mesh of data x tensor devices."""
    if tensor == 1:
        return Split(data)
    heads, kv_heads = cfg.head_count, cfg.head_count_kv
    by_heads = heads % tensor == 0 and (kv_heads % tensor == 0 or tensor % kv_heads == 0)

    def block(name: str) -> int:
        """Weights of the largest block in which the file stores layers of a matrix; 1 where there is no such matrix."""
        names = [n for weight in used if weight.name == name for n in weight.tensors(cfg.block_count)]
        return max((FORMATS[formats[n]].elements for n in names), default=1)

    width = heads // tensor * cfg.key_length
    attn_output: Closing = "inputs" if by_heads and width % block("attn_output") == 0 else "rows"
    blocks = cfg.feed_forward_length // block("ffn_down")
    padded = -(-blocks // tensor) * tensor
    summed = padded <= blocks * (1 + MOST_PADDING)
    features = padded * block("ffn_down") if summed else -(-cfg.feed_forward_length // tensor) * tensor
    return Split(data, tensor, by_heads, attn_output, "inputs" if summed else "rows", features // tensor)


def cut(cfg: ModelConfig, split: Split, weight: Weight, device: int) -> Cut:
    """The part of `weight` that the tensor device number `device` holds."""
    name = weight.name.removesuffix(".bias")
    axis, letters = TABLE.get(name, ("", ""))
    if name in WHOLE_NORMS and cfg.architecture.qk_norm == "whole":
        axis, letters = "rows", WHOLE_NORMS[name]
    if split.tensor == 1 or not axis:
        return Cut()
    if letters in ("V", "E"):
        return _even(axis, weight.shape[0], split.tensor, device)
    if {"attn_output": split.attn_output, "ffn_down": split.ffn_down}.get(name) == "rows":
        return _even("rows", cfg.embedding_length, split.tensor, device)
    if letters != "F" and not split.heads:
        gathered = name in ("attn_q", "attn_k", "attn_v", "attn_qkv")
        return _even("rows", weight.shape[0], split.tensor, device) if gathered else Cut()
    if axis == "inputs" and weight.is_vector:
        return Cut()
    letters = "FF" if name == "ffn_up" and cfg.architecture.fused else letters
    width = 1 if name == "attn_sinks" else cfg.key_length  # of a head
    return _joined(axis, [_part(cfg, split, letter, width, device) for letter in letters])


def _position(weight: Weight, axis: Axis) -> int:
    """Which axis of the weight's shape is cut."""
    match axis:
        case "experts":
            return 0
        case "rows":
            return len(weight.shape) - (1 if weight.is_vector else 2)
        case _:
            return len(weight.shape) - 1


def _part(cfg: ModelConfig, split: Split, letter: str, width: int, device: int) -> tuple[int, int, int, int]:
    """(features of the whole segment, features a device keeps, first of them, how many are real)."""
    if letter == "F":
        first = min(device * split.ffn, cfg.feed_forward_length)
        return cfg.feed_forward_length, split.ffn, first, min(split.ffn, cfg.feed_forward_length - first)
    local = split.local(cfg)
    if letter == "H":
        kept = local.head_count * width
        return cfg.head_count * width, kept, device * kept, kept
    kept = local.head_count_kv * width
    return cfg.head_count_kv * width, kept, device * cfg.head_count_kv // split.tensor * width, kept


def _joined(axis: Axis, parts: list[tuple[int, int, int, int]]) -> Cut:
    pieces, at, base = [], 0, 0
    for whole, kept, first, real in parts:
        pieces.append(Piece(at, base + first, real))
        at, base = at + kept, base + whole
    return Cut(axis, at, tuple(p for p in pieces if p.length))


def _even(axis: Axis, length: int, tensor: int, device: int) -> Cut:
    """`length` shared out in equal parts, the last ones padded."""
    size = -(-length // tensor)
    first = min(device * size, length)
    count = min(size, length - first)
    return Cut(axis, size, (Piece(0, first, count),) if count else ())
