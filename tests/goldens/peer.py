"""llama.cpp through llama-cpp-python: one file's logits, greedy ids and embeddings, for what makes goldens.

The cache is float32, flash attention off and weights are not repacked, so that a file of floats is computed in floats.
"""

import ctypes
import os
import pathlib
import sys
from typing import Any

import numpy as np

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared"  # the fixtures' folder, which may be absent
POOLINGS = {"mean": 1, "last": 3}  # llama_pooling_type


def library() -> Any:
    """llama_cpp, silent."""
    import llama_cpp as lib  # pyright: ignore[reportMissingImports]

    lib.llama_log_set(QUIET, ctypes.c_void_p(0))
    lib.llama_backend_init()
    return lib


def ggml() -> ctypes.CDLL:
    """The library beside it that knows the formats."""
    (path,) = (pathlib.Path(library().__file__).parent / "lib").glob("libggml-base.so")
    return ctypes.CDLL(os.fspath(path))


QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


class Peer:
    """A model in llama.cpp, at its own context length."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.lib = library()
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers, params.use_extra_bufts = 0, False
        self.model = self.lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self.model:
            sys.exit(f"llama.cpp does not load {pathlib.Path(path).name}")
        self.vocab_size = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))
        self.width = self.lib.llama_model_n_embd(self.model)

    def context(self, **changes: Any) -> Any:
        settings = self.lib.llama_context_default_params()
        settings.n_ctx = self.lib.llama_model_n_ctx_train(self.model)
        settings.n_batch = settings.n_ubatch = 128
        settings.n_threads = settings.n_threads_batch = 1
        settings.type_k = settings.type_v = 0  # GGML_TYPE_F32
        settings.flash_attn_type = 0
        for name, value in changes.items():
            setattr(settings, name, value)
        return self.lib.llama_init_from_model(self.model, settings)

    def decode(self, context: Any, ids: list[int], start: int = 0) -> None:
        batch = self.lib.llama_batch_init(128, 0, 1)
        for row, token in enumerate(ids):
            batch.token[row], batch.pos[row], batch.logits[row] = token, start + row, 1
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, 0
        batch.n_tokens = len(ids)
        if self.lib.llama_decode(context, batch):
            sys.exit("llama_decode failed")
        self.lib.llama_batch_free(batch)

    def logits(self, ids: list[int], greedy: int) -> tuple[np.ndarray, list[int], np.ndarray]:
        """Logits after every token of the prompt, greedy ids, and the lead of each of those over the second best."""
        context, fed, rows, found, leads = self.context(), ids, [], [], []
        start = 0
        for _ in range(greedy):
            self.decode(context, fed, start)
            rows += [np.array(self.lib.llama_get_logits_ith(context, i)[: self.vocab_size]) for i in range(len(fed))]
            start += len(fed)
            second, first = np.sort(rows[-1])[-2:]
            leads.append(first - second)
            fed = [int(rows[-1].argmax())]
            found += fed
        self.lib.llama_free(context)
        return np.array(rows[: len(ids)], np.float32), found, np.array(leads, np.float32)

    def embedding(self, ids: list[int], pooling: str | int, width: int | None = None) -> np.ndarray:
        """Not made to be of length 1. pooling: a name in POOLINGS, or a number. width: of a reranker's scores."""
        context = self.context(embeddings=True, pooling_type=POOLINGS.get(str(pooling), pooling))
        self.decode(context, ids)
        found = np.array(self.lib.llama_get_embeddings_seq(context, 0)[: width or self.width], np.float32)
        self.lib.llama_free(context)
        return found

    def close(self) -> None:
        self.lib.llama_model_free(self.model)


class Vocab:
    """A file's vocabulary in llama.cpp."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.lib = library()
        params = self.lib.llama_model_default_params()
        params.vocab_only = True
        self.model = self.lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self.model:
            sys.exit(f"llama.cpp does not load {pathlib.Path(path).name}")
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.size = self.lib.llama_vocab_n_tokens(self.vocab)

        self.bos = self.lib.llama_vocab_bos(self.vocab)
        self.add_bos = self.lib.llama_vocab_get_add_bos(self.vocab)

    @property
    def ends(self) -> list[int]:
        """The tokens that end a generation."""
        return [i for i in range(self.size) if self.lib.llama_vocab_is_eog(self.vocab, i)]

    def encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        raw = text.encode()
        buffer = (ctypes.c_int32 * (len(raw) + 8))()
        count = self.lib.llama_tokenize(self.vocab, raw, len(raw), buffer, len(buffer), add_special, parse_special)
        assert count >= 0
        return list(buffer[:count])

    def decode(self, ids: list[int]) -> bytes:
        """llama_detokenize, which tidies spaces away in some vocabularies."""
        buffer, tokens = ctypes.create_string_buffer(1 << 16), (ctypes.c_int32 * len(ids))(*ids)
        count = self.lib.llama_detokenize(self.vocab, tokens, len(ids), buffer, 1 << 16, 0, 1)
        assert count >= 0
        return buffer.raw[:count]

    def piece(self, token_id: int) -> bytes:
        buffer = ctypes.create_string_buffer(1 << 10)
        count = self.lib.llama_token_to_piece(self.vocab, token_id, buffer, 1 << 10, 0, True)
        assert count >= 0
        return buffer.raw[:count]

    def close(self) -> None:
        self.lib.llama_model_free(self.model)
