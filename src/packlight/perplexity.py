"""How well a model predicts a text: perplexity, and how far its predictions are from another model's.

Chunks, statistics and the file of base predictions are llama.cpp's (`llama-perplexity`), so numbers compare with its
own: the text is cut into chunks of `length` tokens, each begins with the BOS token where the vocabulary adds one, and
the second half of each is predicted. Logits come through the executables that serve generation.

A base file holds the tokens and, per predicted position, log-probabilities in 16 bits:

    "_logits_" | length:i32 | vocabulary:i32 | chunks:i32 | tokens: i32 (chunks, length) | positions...
    position = scale:f32 | least:f32 | u16 (vocabulary, rounded up to even)      log p = scale * u16 + least

Source: llama.cpp tools/perplexity/perplexity.cpp.
"""

import contextlib
import dataclasses
import os
from collections.abc import Generator, Iterator
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from packlight.common.errors import ConfigError
from packlight.common.files import whole_file
from packlight.common.text import reason, shown_path
from packlight.model.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from packlight import LLM

MAGIC = b"_logits_"
RANGE = 16.0  # a base file tells log-probabilities apart down to this far below the best
QUANTILES = (0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01)


@dataclasses.dataclass(frozen=True)
class Base:
    """The predictions of another model, in a file. tokens: int32 (chunks, length)."""

    path: str
    vocab_size: int
    tokens: np.ndarray

    @classmethod
    def open(cls, path: str) -> "Base":
        """Reads the tokens and checks the size. Raises ConfigError naming the file."""
        try:
            size = os.path.getsize(path)
            with open(path, "rb") as file:
                magic, head = file.read(8), np.frombuffer(file.read(12), "<i4")
                if magic != MAGIC or len(head) < 3 or min(head) < 1 or head[0] < 4:
                    raise ConfigError(f"{shown_path(path)}: not a file of base predictions")
                length, vocab_size, chunks = map(int, head)
                base = cls(path, vocab_size, np.zeros((chunks, 0), np.int32))
                wanted = 20 + chunks * (4 * length + base.row_bytes * (length - 1 - length // 2))
                if size != wanted:
                    raise ConfigError(f"{shown_path(path)}: {size} bytes, where its head says {wanted}")
                tokens = np.frombuffer(file.read(4 * chunks * length), "<i4").reshape(chunks, length)
        except OSError as error:
            raise ConfigError(f"{shown_path(path)}: {reason(error)}") from None
        return dataclasses.replace(base, tokens=tokens)

    def check(self, vocab_size: int) -> None:
        """Raises ConfigError, naming the file, when it is for another vocabulary."""
        if self.vocab_size != vocab_size or self.tokens.min() < 0 or self.tokens.max() >= vocab_size:
            raise ConfigError(
                f"{shown_path(self.path)}: for a vocabulary of {self.vocab_size}; the model's has {vocab_size}"
            )

    @property
    def row_bytes(self) -> int:
        return 8 + 2 * (self.vocab_size + self.vocab_size % 2)

    def chunk(self, index: int) -> np.ndarray:
        """Log-probabilities of one chunk's predicted positions: float32 (positions, V). Raises ConfigError."""
        chunks, length = self.tokens.shape
        positions = length - 1 - length // 2
        start = 20 + 4 * chunks * length + index * positions * self.row_bytes
        try:
            rows = np.fromfile(self.path, np.uint8, positions * self.row_bytes, offset=start)
        except OSError as error:
            raise ConfigError(f"{shown_path(self.path)}: {reason(error)}") from None
        if len(rows) < positions * self.row_bytes:
            raise ConfigError(f"{shown_path(self.path)}: the file was cut short after it was opened")
        rows = rows.reshape(positions, -1)
        scale, least = np.ascontiguousarray(rows[:, :8]).view("<f4").T[..., None]
        return scale * np.ascontiguousarray(rows[:, 8:]).view("<u2")[:, : self.vocab_size].astype(np.float32) + least


def cut(tokenizer: Tokenizer, text: str, length: int, most: int | None = None) -> np.ndarray:
    """The tokens of a text in chunks, int32 (chunks, length); what is left over at the end is not used.

    most: chunks at most. Raises ConfigError for a text shorter than two chunks.
    """
    ids = np.array(tokenizer.encode(text), np.int32)
    if len(ids) < 2 * length:
        raise ConfigError(f"the text has {len(ids)} tokens; perplexity over chunks of {length} needs {2 * length}")
    chunks = len(ids) // length
    return ids[: chunks * length].reshape(chunks, length)[:most]


def measure(llm: "LLM", tokens: np.ndarray, save: str | None = None) -> Generator[dict[str, Any], None, None]:
    """Yields the statistics over the chunks so far, after each: the last is the result.

    tokens: int32 (chunks, length), as `cut` gives it. save: path of a base file to write; it appears when all is done.
    Keys: tokens (predicted), nll (mean), perplexity, perplexity_error (standard error).
    Raises ContextLengthError when a chunk does not fit the context, NonFiniteLogitsError, OSError.
    """
    done: list[np.ndarray] = []
    with _written(save) as file:
        if file is not None:
            file.write(MAGIC + np.array([tokens.shape[1], llm.model.vocab_size, len(tokens)], "<i4").tobytes())
            file.write(tokens.astype("<i4").tobytes())
        for chunk in tokens:
            logits, targets = _predictions(llm, chunk)
            logp = log_softmax(logits)
            done.append(-_at(logp, targets))
            if file is not None:
                file.write(_packed(logits, logp))
            yield _perplexity(np.concatenate(done))


def divergence(llm: "LLM", base: Base, chunks: int) -> Generator[dict[str, Any], None, None]:
    """Yields how far the model's predictions are from the base file's, over its chunks so far, after each.

    Besides `measure`'s keys: base_perplexity and its _error; log_ratio of the perplexities; kl_divergence, mean of
    sum p_base * (log p_base - log p) over the tokens with log p_base > -16; kl_max, kl_quantiles; delta_p_rms, of the
    right token's probability; same_top, how often both rank the same token first; each mean's _error is its standard
    error. `base.check` has passed. Raises as `measure` does.
    """
    columns: list[np.ndarray] = []
    for index, chunk in enumerate(base.tokens[:chunks]):
        logits, targets = _predictions(llm, chunk)
        logp, base_logp = log_softmax(logits), base.chunk(index).astype(np.float64)
        kl = np.where(base_logp > -RANGE, np.exp(base_logp) * (base_logp - logp), 0).sum(1)
        same = logits.argmax(1) == base_logp.argmax(1)
        columns.append(np.stack([-_at(logp, targets), -_at(base_logp, targets), kl, same]))
        yield _divergence(*np.concatenate(columns, axis=1))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float32 (rows, V) -> float64 (rows, V)."""
    below = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return below - np.log(np.exp(below).sum(1, keepdims=True))


def _predictions(llm: "LLM", chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits (positions, V) of a chunk's second half, and the tokens that follow."""
    ids, first = chunk.copy(), len(chunk) // 2
    if llm.tokenizer.add_bos:
        ids[0] = llm.tokenizer.bos_id
    return llm.engine.logits(ids.tolist(), first)[:-1], chunk[first + 1 :]


def _at(logp: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.take_along_axis(logp, targets[:, None], axis=1)[:, 0]


def _perplexity(nll: np.ndarray) -> dict[str, Any]:
    mean, error = _mean(nll)
    ppl = float(np.exp(mean))
    return {"tokens": len(nll), "nll": mean, "perplexity": ppl, "perplexity_error": ppl * error}


def _divergence(nll: np.ndarray, base_nll: np.ndarray, kl: np.ndarray, same: np.ndarray) -> dict[str, Any]:
    base = _perplexity(base_nll)
    ratio, ratio_error = _mean(nll - base_nll)
    mean, error = _mean(kl)
    squares, squares_error = _mean((np.exp(-nll) - np.exp(-base_nll)) ** 2)
    rms, (top, top_error) = squares**0.5, _mean(same)
    return _perplexity(nll) | {
        "base_perplexity": base["perplexity"],
        "base_perplexity_error": base["perplexity_error"],
        "log_ratio": ratio,
        "log_ratio_error": ratio_error,
        "kl_divergence": mean,
        "kl_divergence_error": error,
        "kl_max": float(kl.max()),
        "kl_quantiles": {str(q): float(np.quantile(kl, q)) for q in QUANTILES},
        "delta_p_rms": rms,
        "delta_p_rms_error": squares_error / (2 * rms) if rms else 0.0,
        "same_top": top,
        "same_top_error": top_error,
    }


def _mean(values: np.ndarray) -> tuple[float, float]:
    """A mean and its standard error."""
    spread = max(0.0, float(np.mean(values**2) - np.mean(values) ** 2))
    return float(np.mean(values)), (spread / max(1, len(values) - 1)) ** 0.5


def _packed(logits: np.ndarray, logp: np.ndarray) -> bytes:
    """The rows of a base file for positions with these logits."""
    best = logits.max(1, keepdims=True)
    least = np.maximum(logits.min(1, keepdims=True), best - np.float32(RANGE))
    scale = (best - least) / np.float32(65535)
    steps = np.where(scale > 0, np.rint((np.maximum(logits, least) - least) / np.where(scale > 0, scale, 1)), 0)
    least_logp = least - (logits[:, :1] - logp[:, :1])
    rows = np.zeros((len(logits), 4 + logits.shape[1] + logits.shape[1] % 2), "<u2")
    rows[:, :4] = np.concatenate([scale, least_logp], axis=1).astype("<f4").view("<u2")
    rows[:, 4 : 4 + logits.shape[1]] = np.minimum(steps, 65535)
    return rows.tobytes()


@contextlib.contextmanager
def _written(path: str | None) -> Iterator[IO[bytes] | None]:
    """A file to write that takes the path's name when all went well; None for no path."""
    if path is None:
        yield None
        return
    try:
        with whole_file(path) as partial, open(partial, "wb") as file:
            yield file
    except OSError as error:
        raise ConfigError(f"{shown_path(path)}: {reason(error)}") from None
