"""One prompt on its way to a `Completion`: tokens booked, text made safe to show, timings. Knows no model or device."""

import dataclasses
import html
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from packlight.common.errors import NonFiniteLogitsError, PacklightError
from packlight.model.sampling.config import SamplingConfig
from packlight.model.text.streaming import TextStream
from packlight.model.text.tokenizer import Tokenizer
from packlight.serve.prefix import Keep
from packlight.serve.told import Scored, States

if TYPE_CHECKING:
    from packlight.model.sampling.penalties import Steering
    from packlight.serve.engine import Event
    from packlight.serve.told import Told


@dataclasses.dataclass(frozen=True)
class TopLogprob:
    """A token with the model's own log-probability of it, before penalties, bias and temperature."""

    token_id: int
    token: str  # its text, with invalid UTF-8 as U+FFFD
    bytes: list[int]  # its text as it is: a character can be cut over several tokens
    logprob: float


@dataclasses.dataclass(frozen=True)
class TokenLogprob(TopLogprob):
    """A token of a text, and what was likely in its place."""

    top_logprobs: tuple[TopLogprob, ...]  # the most probable tokens, highest first


@dataclasses.dataclass(frozen=True)
class Completion:
    """What one prompt gave.

    The text is the generated pieces' bytes joined, with invalid UTF-8 as U+FFFD. It ends before the end token or a stop
    string. The timings are ttft_s, prefill_tok_s (of tokens that were read), decode_tok_s, itl_p50_ms, itl_p95_ms and
    total_s. An itl is the time between two tokens; those of one launch come together. drafted and accepted count the
    tokens that were guessed, and those that were right, where drafts are made. `str(completion)` is the text.
    """

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: str  # "stop" (end token or stop string) or "length" (max_tokens reached, or the context is full)
    timings: dict[str, float | None]  # None where there were too few tokens to measure
    logprobs: list[TokenLogprob] | None = None  # one for each of `token_ids`, where they were wanted
    # of the draws: the request's own, or the random one that it was given; two texts may be equal without it
    seed: int | None = dataclasses.field(default=None, compare=False)
    # of the prompt: not read, as the cache had them from the text before
    cached_tokens: int = dataclasses.field(default=0, compare=False)
    # one for each of `prompt_token_ids`, where they were wanted; None for the first one, which nothing precedes
    prompt_logprobs: list[TokenLogprob | None] | None = None

    @property
    def usage(self) -> dict[str, int]:
        """The tokens of prompt and text, and both together, under OpenAI's names."""
        prompt, text = len(self.prompt_token_ids), len(self.token_ids)
        return {"prompt_tokens": prompt, "completion_tokens": text, "total_tokens": prompt + text}

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """The text in a notebook, above its numbers."""
        rate = self.timings["decode_tok_s"]
        facts = [f"{count:,} {name.replace('_', ' ')}" for name, count in self.usage.items()]
        facts += [f"{rate:.1f} tokens/s"] if rate else []
        facts += [f"ended by {self.finish_reason}", *([] if self.seed is None else [f"seed {self.seed}"])]
        text = f'<div style="white-space: pre-wrap">{html.escape(self.text)}</div>'
        return f"{text}<small>{html.escape(', '.join(facts))}</small>"


class Shown(Protocol):
    """What makes text of a run's ids: a `TextStream`, or what also knows what the text means."""

    @property
    def stopped(self) -> bool:
        """Whether the text has reached a stop string."""
        ...

    def feed(self, token_id: int, /) -> str:
        """The text that became safe to show with this id."""
        ...

    def finish(self) -> str:
        """What was held back."""
        ...


class Run:
    """One prompt on its way to a Completion."""

    prompt: list[int]
    sampling: SamplingConfig
    steering: "Steering"  # of its logits; no other run's
    keep: Keep  # what of the prompt need not be read where the cache has it
    salt: str  # its beginning is shared only with runs of the same one
    predicted: Sequence[int]  # tokens that are expected, which drafts are taken from
    began: float  # time.perf_counter() when it was submitted
    states = False  # of its prompt none are wanted
    complete: bool  # no token follows
    failure: PacklightError | None  # what it ended for: NonFiniteLogitsError, or a form that cannot be kept

    def __init__(
        self,
        prompt: list[int],
        sampling: SamplingConfig,
        tokenizer: Tokenizer,
        steering: "Steering",
        keep: Keep = Keep.CHUNKS,
        shown: Shown | None = None,
        salt: str = "",
        predicted: Sequence[int] = (),
    ):
        """shown: makes the text; None is a `TextStream` with the request's stop strings. predicted: tokens of a text
        that is expected.
        """
        self.prompt, self.sampling, self.steering, self._tokenizer = prompt, sampling, steering, tokenizer
        self.keep, self.salt, self.predicted, self._cached = keep, salt, predicted, 0
        self._logprobs: list[TokenLogprob] = []
        self._scores: list[TokenLogprob | None] = [None]  # of the prompt's tokens
        self._scored_at: float | None = None
        self._stream = shown or TextStream(tokenizer, sampling.stop)
        read = sampling.prompt_logprobs is not None or keep is not Keep.NOTHING  # for what it says, or for the cache
        self.complete = not (sampling.answered or read)
        self.began = 0.0
        self.failure = None
        self._ids: list[int] = []
        self._times: list[float] = []
        self._drafts: tuple[int, int] | None = None  # made, and right
        self._text: list[str] = []
        self._shown = self._told_of = 0
        self._reason = "length"

    def take(self, event: "Event | Told") -> None:
        """Books one token, or what is said of some of the prompt's."""
        assert not isinstance(event, States)
        if isinstance(event, Scored):
            self._take_scores(event)
            return
        self._times.append(event.time)
        self._cached, self._drafts = event.kept, event.drafts
        if event.ended == "error":
            self.failure = event.failure or _not_finite(event.position)
        elif event.ended != "stop":
            self._ids.append(event.token)
            if event.logprob is not None:
                self._logprobs.append(self._token_logprob(event.token, event.logprob, event.top_logprobs))
            self._text.append(self._stream.feed(event.token))
        if event.ended:
            self._text.append(self._stream.finish())
        if event.ended == "stop" or self._stream.stopped:
            self._reason = "stop"
        self.complete = bool(event.ended) or self._stream.stopped

    def _take_scores(self, scored: Scored) -> None:
        """Books log-probabilities of the prompt's tokens."""
        tokens = self.prompt[scored.start : scored.position]
        self._scores += map(self._token_logprob, tokens, scored.logprobs, scored.top_logprobs)
        self._scored_at, self._cached = scored.time, scored.kept
        if scored.ended == "error":
            self.failure = _not_finite(scored.position)
        self.complete = bool(scored.ended)

    def _token_logprob(self, token: int, logprob: float, top: Iterable[tuple[int, float]]) -> TokenLogprob:
        """What is said of a token, with its text and that of the most probable ones."""
        others = tuple(TopLogprob(*self._told(*each)) for each in top)
        return TokenLogprob(*self._told(token, logprob), others)

    def _told(self, token_id: int, logprob: float) -> tuple[int, str, list[int], float]:
        """The fields of a `TopLogprob`."""
        piece = self._tokenizer.piece(token_id)
        return token_id, piece.decode(errors="replace"), list(piece), logprob

    def check(self) -> None:
        """Raises what the run ended for, if it ended for a failure."""
        if self.failure is not None:
            raise self.failure

    @property
    def generated(self) -> int:
        """How many tokens the text has by now."""
        return len(self._ids)

    def fresh(self) -> str:
        """The text that became safe to show since the last call."""
        text = "".join(self._text[self._shown :])
        self._shown = len(self._text)
        return text

    def fresh_tokens(self) -> tuple[list[int], list[TokenLogprob]]:
        """The tokens since the last call, and their log-probabilities where they are wanted. Text may come later: a
        character can be cut over several tokens.
        """
        begin, self._told_of = self._told_of, len(self._ids)
        return self._ids[begin:], self._logprobs[begin:]

    def completion(self) -> Completion:
        """What there is by now; later tokens do not change it."""
        logprobs = None if self.sampling.logprobs is None else list(self._logprobs)
        text, seed = "".join(self._text), self.sampling.seed
        timings, cached = self._timings(), self._cached
        scores = None if self.sampling.prompt_logprobs is None else list(self._scores)
        return Completion(text, list(self._ids), self.prompt, self._reason, timings, logprobs, seed, cached, scores)

    def _timings(self) -> dict[str, float | None]:
        """Seconds, rates and gaps; None where there were too few tokens to measure."""
        times, read_at = self._times, None if self.sampling.answered else self._scored_at
        gaps = sorted(1000 * (b - a) for a, b in zip(times, times[1:], strict=False))
        ttft = times[0] - self.began if times else None
        read = read_at - self.began if read_at else ttft
        drafts: dict[str, float | None] = {}
        if self._drafts is not None:
            drafts["drafted"], drafts["accepted"] = self._drafts
        return {
            "ttft_s": ttft,
            "prefill_tok_s": (len(self.prompt) - self._cached) / read if read else None,
            "decode_tok_s": 1000 * len(gaps) / sum(gaps) if gaps else None,
            "itl_p50_ms": statistics.median(gaps) if gaps else None,
            "itl_p95_ms": gaps[min(len(gaps) - 1, int(0.95 * len(gaps)))] if gaps else None,
            "total_s": times[-1] - self.began if times else read or 0.0,
        } | drafts


def _not_finite(position: int) -> NonFiniteLogitsError:
    return NonFiniteLogitsError(f"the model's logits at position {position} are NaN or infinite")
