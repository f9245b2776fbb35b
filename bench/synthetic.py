"""Random GGUF files of any shape and format mix, made in seconds: what kernels and loaders are measured on.

    python -m packlight.bench.synthetic --shape=tinyllama-1.1b --mix=Q4_K_M --out=FILE [--seed=0]

The shapes are those of `bench/shapes.py`. It knows llama.cpp's mixes and the container; its own writer streams a few
MiB at a time. The text such a model writes is noise, but any text encodes, every scale is finite and activations keep a
sane size. Imports no jax.
"""

import argparse
import dataclasses
import math
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from packlight.bench.blocks import random_blocks
from packlight.bench.shapes import (
    ATTENDING_EVERY,
    CONVOLUTION,
    ENCODERS,
    EXACT,
    SHAPES,
    TAPS,
    UNTOUCHED,
    Shape,
    layer_shapes,
)
from packlight.common.errors import PacklightError
from packlight.common.files import whole_file
from packlight.model.spec.mixes import K_MIXES, VALUES, counted, mixed_format
from packlight.quant.formats.table import FORMATS, Format, format_named

CHUNK_BYTES = 8 << 20
MOE_MIX = "MXFP4_MOE"
TOKEN_TYPES, MEAN = 2, 1  # of encoders: types of tokens, and `llama_pooling_type`
# Fields of a shape that no flag changes.
STRUCTURED = ("architecture", "attending", "latent", "mixture", "delta", "mamba")


@dataclasses.dataclass(frozen=True)
class Planned:
    """A tensor to be written; `shape` is (out, in), heads or experts before, or (n,) for a norm or bias."""

    name: str
    shape: tuple[int, ...]
    format: Format

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self.format.elements * self.format.bytes


def shape_format(mix: str, base: str, layer: int, shape: Shape) -> str:
    """`mixed_format` of a shape; of attn_v only the layers that have one count. A head's own matrices are in Q5_0,
    because llama.cpp aborts on those in a format that it lays out anew for its CPU kernels. "MXFP4_MOE" is what gpt-oss
    comes in.
    """
    if mix == MOE_MIX:
        return "MXFP4" if base.endswith("_exps") else "Q8_0"
    if base in ("attn_k_b", "attn_v_b") and FORMATS.get(mix, FORMATS["Q4_0"]).elements > 1:
        return "Q5_0"
    with_values = [each for each in range(shape.layers) if any(name in VALUES for name in layer_shapes(shape, each))]
    at, layers = counted(base, layer, shape.layers, with_values)
    return mixed_format(*(mix, base, at), layers=layers, heads=shape.heads, kv_heads=shape.kv_heads, tied=shape.tied)


def plan(shape: Shape, choose: Callable[[str, int], str]) -> list[Planned]:
    """Every tensor of the model in file order; `choose(base name, layer)` names a matrix's format (layer -1: none).

    Raises ValueError when a row is not a multiple of the chosen format's block.
    """

    def matrix(prefix: str, base: str, layer: int, dims: tuple[int, ...]) -> Planned:
        fmt = format_named(choose(base, layer))
        if dims[-1] % fmt.elements:
            raise ValueError(
                f"{prefix}{base}: rows of {dims[-1]} weights do not fit {fmt.name}'s block of {fmt.elements}"
            )
        return Planned(f"{prefix}{base}.weight", dims, fmt)

    def floats(name: str, *dims: int) -> Planned:
        return Planned(name, dims, FORMATS["F32"])

    out = [matrix("", "token_embd", -1, (shape.vocab, shape.embed))]
    encodes = shape.architecture in ENCODERS
    if encodes:
        out += [floats("token_types.weight", TOKEN_TYPES, shape.embed)]
        out += [floats(f"token_embd_norm.{name}", shape.embed) for name in ("weight", "bias")]
    if shape.architecture == "bert":
        out.append(floats("position_embd.weight", shape.context, shape.embed))
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        for base, dims in layer_shapes(shape, layer).items():
            exact = base in EXACT or base.endswith(".bias")
            if len(dims) == 1 or exact or base in UNTOUCHED:
                out.append(floats(f"{at}{base}{'' if exact else '.weight'}", *dims))
                continue
            out.append(matrix(at, base, layer, dims))
            if shape.biases and base.startswith("attn"):
                out.append(floats(f"{at}{base}.bias", *dims[:1]))
    if encodes:
        return out
    last = "token_embd_norm" if shape.architecture == "lfm2" else "output_norm"
    out.append(floats(f"{last}.weight", shape.embed))
    if not shape.tied:
        out.append(matrix("", "output", -1, (shape.vocab, shape.embed)))
    return out


def tensor_chunks(tensor: Planned, seed: int) -> Iterator[np.ndarray]:
    """The packed bytes of a tensor, uint8 (rows, blocks, block bytes) of about CHUNK_BYTES at a time.

    They depend on name, shape, format and seed alone. Matrices spread by 1/sqrt(in), norms lie near 1, biases near 0,
    the rates at which memories fade near -1.
    """
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(tensor.name.encode())]))
    if math.prod(tensor.shape[1:]) == 1 or tensor.name.endswith("norm.weight"):
        values = 0.1 * rng.standard_normal(math.prod(tensor.shape), np.float32)
        near = np.float32(tensor.name.endswith("norm.weight")) - np.float32(tensor.name.endswith("ssm_a"))
        yield (values + near).view(np.uint8).reshape(1, -1, 4)
        return
    rows, width = math.prod(tensor.shape[:-1]), tensor.shape[-1]
    per_row = width // tensor.format.elements
    step = max(1, CHUNK_BYTES // (per_row * tensor.format.bytes))
    for start in range(0, rows, step):
        count = min(step, rows - start)
        blocks = random_blocks(tensor.format, count * per_row, width**-0.5, rng)
        yield blocks.reshape(count, per_row, tensor.format.bytes)


def spm_tokens(count: int) -> tuple[list[str], list[float], list[int]]:
    """(pieces, scores, types) of a sentencepiece vocabulary of `count` >= 260 tokens that encodes any text.

    <unk>, <s>, </s>, the 256 bytes, then pieces: letters first, then joins of two earlier ones, as merging needs.
    """
    if count < 260:
        raise ValueError(f"a vocabulary of {count} tokens does not hold 3 special ones, 256 bytes and one piece")
    pieces = list("▁etaoinshrdlucmfwypvbgkjqxz.,'!?\"-0123456789TSABHIWM")[: count - 259]
    known = set(pieces)
    rng = np.random.Generator(np.random.PCG64(count))  # the tokenizer is the shape's, whatever the seed
    while len(pieces) < count - 259:
        # earlier pieces are likelier, so that short common joins come first
        for a, b in (rng.random((4096, 2)) ** 2 * len(pieces)).astype(int).tolist():
            joined = pieces[a] + pieces[b]
            if len(joined) <= 12 and joined not in known and "▁" not in joined[1:] and len(pieces) < count - 259:
                known.add(joined)
                pieces.append(joined)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
    return tokens, scores, [2, 3, 3] + [6] * 256 + [1] * len(pieces)


def metadata(shape: Shape, name: str) -> dict[str, tuple[str, Any]]:
    """The key-value pairs as key -> (type, value); types are `_TYPES` and, for arrays, `[type]`."""
    tokens, scores, types = spm_tokens(shape.vocab)
    kv_heads: tuple[str, Any] = ("u32", shape.kv_heads)
    if shape.attending is not None:
        kv_heads = ("[i32]", [shape.kv_heads * shape.attends(layer) for layer in range(shape.layers)])
    hyperparameters: dict[str, tuple[str, Any]] = {
        "block_count": ("u32", shape.layers),
        "context_length": ("u32", shape.context),
        "embedding_length": ("u32", shape.embed),
        "feed_forward_length": ("u32", shape.ffn),
        "attention.head_count": ("u32", shape.heads),
        "attention.head_count_kv": kv_heads,
        "attention.key_length": ("u32", shape.head_size),
        "attention.value_length": ("u32", shape.head_size),
        "attention.layer_norm_rms_epsilon": ("f32", shape.epsilon),
        "rope.dimension_count": ("u32", shape.rotated or shape.head_size),
        "rope.freq_base": ("f32", shape.rope_base),
        "vocab_size": ("u32", shape.vocab),
    }
    if shape.latent is not None:
        queries, latent, rotated, key, value = shape.latent
        hyperparameters |= {
            "attention.q_lora_rank": ("u32", queries),
            "attention.kv_lora_rank": ("u32", latent),
            "attention.key_length": ("u32", latent + rotated),
            "attention.value_length": ("u32", latent),
            "attention.key_length_mla": ("u32", key),
            "attention.value_length_mla": ("u32", value),
            "rope.dimension_count": ("u32", rotated),
        }
    if shape.mixture is not None:
        hyperparameters |= {
            "expert_count": ("u32", shape.mixture.experts),
            "expert_used_count": ("u32", shape.mixture.used),
            "expert_feed_forward_length": ("u32", shape.mixture.width),
        }
    if shape.mixture is not None and shape.mixture.shared:
        hyperparameters |= {
            "expert_shared_count": ("u32", 1),
            "leading_dense_block_count": ("u32", 1),
            "expert_gating_func": ("u32", 2),
            "expert_weights_norm": ("bool", True),
        }
    if shape.window:
        hyperparameters["attention.sliding_window"] = ("u32", shape.window)
    if shape.mamba is not None:
        hyperparameters |= {
            "ssm.conv_kernel": ("u32", TAPS),
            "ssm.state_size": ("u32", shape.mamba.states),
            "ssm.group_count": ("u32", shape.mamba.groups),
            "ssm.time_step_rank": ("u32", shape.mamba.heads),
            "ssm.inner_size": ("u32", shape.mamba.inner),
            "rope.scaling.finetuned": ("bool", False),
            "embedding_scale": ("f32", 12.0),
            "residual_scale": ("f32", 0.22),
            "attention.scale": ("f32", 1 / shape.head_size),
            "logit_scale": ("f32", 8.0),
        }
    elif shape.attending is not None:
        hyperparameters["shortconv.l_cache"] = ("u32", CONVOLUTION)
    if shape.delta is not None:
        heads, groups, width = shape.delta
        pairs = shape.rotated // 2
        hyperparameters |= {
            "full_attention_interval": ("u32", ATTENDING_EVERY),
            "rope.dimension_sections": ("[i32]", [-(-(pairs - at) // 3) for at in range(3)] + [0]),
            "ssm.conv_kernel": ("u32", TAPS),
            "ssm.state_size": ("u32", width),
            "ssm.group_count": ("u32", groups),
            "ssm.time_step_rank": ("u32", heads),
            "ssm.inner_size": ("u32", heads * width),
        }
    more: dict[str, tuple[str, Any]] = {}
    if shape.architecture in ENCODERS:
        hyperparameters["attention.layer_norm_epsilon"] = hyperparameters.pop("attention.layer_norm_rms_epsilon")
        hyperparameters |= {"attention.causal": ("bool", False), "pooling_type": ("u32", MEAN)}
        more["tokenizer.ggml.token_type_count"] = ("u32", TOKEN_TYPES)
    return {
        "general.architecture": ("str", shape.architecture),
        "general.name": ("str", name),
        "general.quantization_version": ("u32", 2),
        **{f"{shape.architecture}.{key}": typed for key, typed in hyperparameters.items()},
        "tokenizer.ggml.model": ("str", "llama"),
        "tokenizer.ggml.pre": ("str", "default"),
        "tokenizer.ggml.tokens": ("[str]", tokens),
        "tokenizer.ggml.scores": ("[f32]", scores),
        "tokenizer.ggml.token_type": ("[i32]", types),
        "tokenizer.ggml.bos_token_id": ("u32", 1),
        "tokenizer.ggml.eos_token_id": ("u32", 2),
        "tokenizer.ggml.unknown_token_id": ("u32", 0),
        "tokenizer.ggml.add_bos_token": ("bool", True),
        "tokenizer.ggml.add_eos_token": ("bool", False),
        **more,
    }


# Type number and `struct` letter of the value types used above. Source: the GGUF specification.
_TYPES = {"u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"), "bool": (7, "?"), "str": (8, "")}


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: str, value: Any) -> bytes:
    number, letter = _TYPES[kind.strip("[]")]
    values = value if kind[0] == "[" else [value]
    head = struct.pack("<IIQ", 9, number, len(values)) if kind[0] == "[" else struct.pack("<I", number)
    body = struct.pack(f"<{len(values)}{letter}", *values) if letter else b"".join(map(_string, values))
    return head + body


def header_bytes(pairs: dict[str, tuple[str, Any]], tensors: list[Planned], alignment: int = 32) -> bytes:
    """Everything before the data section, its padding included. Source: the GGUF specification, version 3."""
    out = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(pairs))]
    out += [_string(key) + _value(*typed) for key, typed in pairs.items()]
    offset = 0
    for t in tensors:
        dims = struct.pack(f"<I{len(t.shape)}Q", len(t.shape), *t.shape[::-1])
        out.append(_string(t.name) + dims + struct.pack("<IQ", t.format.type_id, offset))
        offset += t.nbytes + -t.nbytes % alignment
    head = b"".join(out)
    return head + bytes(-len(head) % alignment)


def write(path: str | os.PathLike, shape: Shape, mix: str, seed: int = 0) -> int:
    """Writes the model to `path`, whole or not at all, and returns its bytes. Memory stays near 10 × CHUNK_BYTES."""
    tensors = plan(shape, lambda base, layer: shape_format(mix, base, layer, shape))
    target = os.fspath(path)
    with whole_file(target) as partial, open(partial, "wb") as f:
        f.write(header_bytes(metadata(shape, f"synthetic {mix}"), tensors))
        for tensor in tensors:
            for chunk in tensor_chunks(tensor, seed):
                f.write(chunk.data)
            f.write(bytes(-tensor.nbytes % 32))
    return os.path.getsize(target)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m packlight.bench.synthetic", description="write a random GGUF file")
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama-1.1b")
    parser.add_argument("--mix", default="Q4_K_M", help=f"{', '.join((*K_MIXES, MOE_MIX))}, a format or pure-FORMAT")
    parser.add_argument("--out", required=True, metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    fields = [f for f in dataclasses.fields(Shape) if f.name not in STRUCTURED]
    for field in fields:
        if isinstance(field.default, bool):
            parser.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction)
        else:
            parser.add_argument(f"--{field.name}", type=float if isinstance(field.default, float) else int)
    args = parser.parse_args(argv)
    wanted = {f.name: getattr(args, f.name) for f in fields if getattr(args, f.name) is not None}
    began = time.perf_counter()
    try:
        size = write(args.out, dataclasses.replace(SHAPES[args.shape], **wanted), args.mix, args.seed)
    except (ValueError, OSError, PacklightError) as e:
        parser.error(str(e))
    print(f"{args.out}: {size:,} bytes in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
