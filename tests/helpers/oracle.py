"""A llama forward pass in float64 numpy, written apart from the product: gguf-py reads and dequantizes the file.

It covers what the llama architecture may hold but mixtures of experts: GQA, tied heads, biases, any head_dim, partial
rotation, linear scaling and frequency divisors. YaRN and experts are proven against llama.cpp's logits instead.
"""

import gguf
import numpy as np


class Oracle:
    """One file's weights in float64; `logits(ids)` runs the whole prompt."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.meta = {name: field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
        self.tensors = {
            t.name: gguf.quants.dequantize(t.data, t.tensor_type)
            .reshape([int(n) for n in reversed(t.shape)])
            .astype(np.float64)
            for t in reader.tensors
        }

    def key(self, name, default=None):
        return self.meta.get(f"llama.{name}", default)

    def linear(self, name, x):
        bias = self.tensors.get(f"{name}.bias")
        return x @ self.tensors[f"{name}.weight"].T + (0 if bias is None else bias)

    def norm(self, name, x):
        epsilon = self.key("attention.layer_norm_rms_epsilon")
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * self.tensors[f"{name}.weight"]

    def rotate(self, x):  # (T, heads, C)
        rotated = self.key("rope.dimension_count", x.shape[-1])
        theta = self.key("rope.freq_base", 10000.0) ** (-np.arange(0, rotated, 2) / rotated)
        theta = theta / self.key("rope.scaling.factor", 1.0) / self.tensors.get("rope_freqs.weight", 1.0)
        angle = (np.arange(len(x))[:, None] * theta)[:, None]
        out = x.copy()
        a, b = x[..., 0:rotated:2], x[..., 1:rotated:2]
        out[..., 0:rotated:2] = a * np.cos(angle) - b * np.sin(angle)
        out[..., 1:rotated:2] = a * np.sin(angle) + b * np.cos(angle)
        return out

    def attention(self, blk, x):
        T = len(x)
        heads, kv = self.key("attention.head_count"), self.key("attention.head_count_kv")
        q, k, v = (self.linear(f"{blk}.attn_{n}", x).reshape(T, h, -1) for n, h in (("q", heads), ("k", kv), ("v", kv)))
        q, k = self.rotate(q), self.rotate(k)
        k, v = (np.repeat(z, heads // kv, axis=1) for z in (k, v))
        scores = np.einsum("thc,shc->hts", q, k) / np.sqrt(q.shape[-1])
        scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hts,shc->thc", weights / weights.sum(-1, keepdims=True), v)
        return self.linear(f"{blk}.attn_output", mixed.reshape(T, -1))

    def ffn(self, blk, x):
        gate = self.linear(f"{blk}.ffn_gate", x)
        return self.linear(f"{blk}.ffn_down", gate / (1 + np.exp(-gate)) * self.linear(f"{blk}.ffn_up", x))

    def logits(self, ids):
        x = self.tensors["token_embd.weight"][np.asarray(ids)]
        for layer in range(self.key("block_count")):
            blk = f"blk.{layer}"
            x = x + self.attention(blk, self.norm(f"{blk}.attn_norm", x))
            x = x + self.ffn(blk, self.norm(f"{blk}.ffn_norm", x))
        x = self.norm("output_norm", x)
        return x @ self.tensors.get("output.weight", self.tensors["token_embd.weight"]).T
