"""The trained network as a GGUF file of float32, written by gguf-py: what packlight and llama.cpp read.

It knows the names and keys of GGUF's llama; parameters are in its layout already (`network`).
"""

import json
import os
from typing import Any

import gguf
import numpy as np
import tokenizers

from tools.train_demo.network import Params, Shape
from tools.train_demo.vocabulary import END_ID, SPECIAL, TEMPLATE

ABOUT = {
    "name": "packlight demo",
    "author": "the packlight project",
    "description": "A small model that answers questions about Python, trained on Python's own documentation",
    "license": "Apache-2.0 AND PSF-2.0",
}


def write(path: str | os.PathLike, params: Params, shape: Shape, tokenizer: tokenizers.Tokenizer) -> None:
    """Writes the whole model to `path`."""
    writer = gguf.GGUFWriter(path, "llama")
    _add_keys(writer, shape)
    _add_vocabulary(writer, json.loads(tokenizer.to_str())["model"])
    for name, values in tensors(params).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(params: Params) -> dict[str, np.ndarray]:
    """GGUF name -> float32 values, matrices (out, in)."""
    named = {f"{name}.weight": params[name] for name in ("token_embd", "output_norm")}
    for name, stacked in params["blk"].items():
        named |= {f"blk.{layer}.{name}.weight": values for layer, values in enumerate(stacked)}
    return {name: np.asarray(values, np.float32) for name, values in named.items()}


def _add_keys(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(ABOUT["name"])
    writer.add_author(ABOUT["author"])
    writer.add_description(ABOUT["description"])
    writer.add_license(ABOUT["license"])
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embed)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab)


def _add_vocabulary(writer: gguf.GGUFWriter, model: dict[str, Any]) -> None:
    """The BPE as `tokenizers` saves it; id 0 begins and ends a document, and a prompt is the beginning of one.

    An answer in a conversation ends with its own token.
    """
    ids = model["vocab"]
    kinds = len(SPECIAL) * [gguf.TokenType.CONTROL] + (len(ids) - len(SPECIAL)) * [gguf.TokenType.NORMAL]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(ids, key=ids.__getitem__))
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_eot_token_id(END_ID)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(TEMPLATE)
