"""llama.cpp in a process of its own, through llama-cpp-python's low-level functions; spoken to in lines of JSON.

    python bench/peer.py        # then one request a line on stdin, one answer a line on stdout

Requests: {"do": "load", "model", "threads", "repack"}, {"do": "start", "phase", "tokens", "context", "prompts"},
{"do": "run"}, {"do": "stop"}. An answer that holds "error" is a failure in words. Between requests it waits for the
next line. It runs under any Python that has llama_cpp and numpy, so it imports nothing of packlight. Settings are
llama.cpp's defaults (float16 cache, automatic flash attention, 512 tokens a micro-batch); threads and lengths are
given, and "swa_full" where layers have a sliding window.
"""

import ctypes
import json
import os
import sys
import time
from typing import Any

import llama_cpp as lib  # pyright: ignore[reportMissingImports]

N_BATCH = 2048


class Peer:
    """A loaded model and the context of the case that was started last."""

    def __init__(self):
        self.model: Any = None
        self.context: Any = None
        self.batch: Any = None

    def load(self, model: str, threads: int, repack: bool = True) -> dict[str, Any]:
        """Loads the file on the CPU. repack: weights may be laid out anew, in memory beside those that are mapped."""
        self.threads = threads
        params = lib.llama_model_default_params()
        params.n_gpu_layers, params.use_extra_bufts = 0, repack
        began = time.perf_counter()
        self.model = lib.llama_model_load_from_file(os.fsencode(model), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {model}")
        return {
            "load_s": time.perf_counter() - began,
            "version": lib.__version__,
            "system": lib.llama_print_system_info().decode(),
        }

    def start(
        self, phase: str, tokens: int, context: int, prompts: list[list[int]], swa_full: bool = True
    ) -> dict[str, Any]:
        """A fresh context with a sequence per prompt; phase "tg" puts the prompts into it.

        swa_full: layers with a sliding window cache the whole context, which runs that repeat need.
        """
        self.stop()
        self.phase, self.tokens, self.prompts = phase, tokens, prompts
        params = lib.llama_context_default_params()
        params.n_ctx = len(prompts) * (-(-context // 256) * 256)
        params.n_batch = max(N_BATCH, len(prompts))
        params.n_seq_max = len(prompts)
        params.n_threads = params.n_threads_batch = self.threads
        params.swa_full = swa_full
        if phase == "emb":
            params.embeddings = True
            params.n_ubatch = params.n_batch  # an encoder sees all of a text
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp makes no context of {params.n_ctx} tokens")
        self.memory = lib.llama_get_memory(self.context)
        self.batch = lib.llama_batch_init(params.n_batch, 0, 1)
        if phase == "tg":
            for sequence, prompt in enumerate(prompts):
                self._prompt(prompt, sequence)
        return {}

    def run(self) -> dict[str, Any]:
        """One repetition: its seconds and, for "tg", those of each token."""
        if self.phase == "emb":
            return self._embed()
        if self.phase == "pp":
            lib.llama_memory_clear(self.memory, False)
            began = time.perf_counter()
            self._prompt(self.prompts[0], 0)
            return {"seconds": time.perf_counter() - began, "gaps": []}
        depth = len(self.prompts[0])
        for sequence, prompt in enumerate(self.prompts):
            if not lib.llama_memory_seq_rm(self.memory, sequence, depth, -1):  # a recurrence: from the beginning
                lib.llama_memory_seq_rm(self.memory, sequence, -1, -1)
                self._prompt(prompt, sequence)
        times = [time.perf_counter()]
        for position in range(depth, depth + self.tokens):
            for row, prompt in enumerate(self.prompts):
                self._put(row, prompt[position % depth], position, row, True)
            self._decode(len(self.prompts))
            times.append(time.perf_counter())
        return {"seconds": times[-1] - times[0], "gaps": [b - a for a, b in zip(times, times[1:], strict=False)]}

    def stop(self) -> dict[str, Any]:
        """Frees the context."""
        if self.batch is not None:
            lib.llama_batch_free(self.batch)
        if self.context:
            lib.llama_free(self.context)
        self.context = self.batch = None
        return {}

    def _prompt(self, ids: list[int], sequence: int) -> None:
        """A whole prompt, with logits after its last token."""
        for start in range(0, len(ids), N_BATCH):
            part = ids[start : start + N_BATCH]
            for row, token in enumerate(part):
                self._put(row, token, start + row, sequence, start + row == len(ids) - 1)
            self._decode(len(part))

    def _embed(self) -> dict[str, Any]:
        """The vectors of all texts, as many texts at a time as a batch holds."""
        began, each = time.perf_counter(), max(1, N_BATCH // self.tokens)
        for first in range(0, len(self.prompts), each):
            texts, row = self.prompts[first : first + each], 0
            for sequence, text in enumerate(texts):
                for position, token in enumerate(text):
                    self._put(row, token, position, sequence, True)
                    row += 1
            if self.memory:
                lib.llama_memory_clear(self.memory, False)
            self._decode(row)
            for sequence in range(len(texts)):
                if not lib.llama_get_embeddings_seq(self.context, sequence):
                    raise RuntimeError("llama.cpp pools nothing")
        return {"seconds": time.perf_counter() - began, "gaps": []}

    def _put(self, row: int, token: int, position: int, sequence: int, logits: bool) -> None:
        batch = self.batch
        batch.token[row], batch.pos[row], batch.logits[row] = token, position, logits
        batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence

    def _decode(self, rows: int) -> None:
        self.batch.n_tokens = rows
        code = lib.llama_decode(self.context, self.batch)
        if code:
            raise RuntimeError(f"llama_decode of {rows} tokens returned {code}")
        lib.llama_synchronize(self.context)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    lib.llama_backend_init()
    peer = Peer()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(peer, request.pop("do"))(**request)
        except Exception as error:  # the caller must get a line whatever happens
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
