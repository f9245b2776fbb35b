"""Texts in the shapes of OpenAI's API: whole answers, and the pieces of streams."""

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from packlight.model.text.replies.deltas import CallArguments, CallBegun, Content, Delta, Reasoning
from packlight.model.text.replies.parser import ReplyParser
from packlight.model.text.tokenizer import Tokenizer
from packlight.serve.run import Completion, TokenLogprob, TopLogprob
from packlight.server.requests import Asked

Reply = dict[str, Any]


class Replies:
    """The answers to one request."""

    def __init__(self, asked: Asked, tokenizer: Tokenizer, fingerprint: str):
        self.asked, self._tokenizer = asked, tokenizer
        kind = "chat.completion" if asked.chat else "text_completion"
        self._whole = {
            "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": fingerprint,
        }
        self._part = self._whole | ({"object": "chat.completion.chunk"} if asked.chat else {})
        self._at = [0] * len(asked.runs)  # where in each text the next token's text begins, in characters
        self._ended = set[int]()  # the texts whose ends a stream has told

    def whole(self) -> Reply:
        """All texts, complete."""
        completions = [run.completion() for run in self.asked.runs]
        choices = [self._choice(number, completion) for number, completion in enumerate(completions)]
        told = {**self._whole, "choices": choices, "usage": self.usage(), **_timings(completions)}
        if self.asked.chat and self.asked.prompt_logprobs:
            told["prompt_logprobs"] = _of_prompt(completions[0])
        return told | (self._prompt_ids(0) if self.asked.chat else {})

    def first(self) -> Iterator[Reply]:
        """What stands before any token: of a chat the role, of an echo the prompt; and the prompt's ids."""
        for number in range(len(self.asked.runs)):
            ids = self._prompt_ids(number)
            if self.asked.chat:
                yield self._piece(number, {"delta": {"role": "assistant", "content": ""}}) | ids
            elif (echoed := self.asked.echo and not self.asked.logprobs) or ids:
                yield self._piece(number, {"text": self._prompt_text(number) if echoed else ""} | ids)

    def pieces(self) -> Iterator[Reply]:
        """What has become known of each text since the last call, with its end as soon as it has one."""
        for number, run in enumerate(self.asked.runs):
            if number in self._ended:
                continue
            ids, logprobs = run.fresh_tokens()
            said = self._fresh(number, run.complete or bool(ids))
            told: Reply = {}
            if self.asked.logprobs and (ids or said):
                told["logprobs"] = self._logprobs(number, logprobs)
            if ids:
                told |= self._ids(ids)
            if told and not said:
                said = [self._nothing]
            for each in said:
                yield self._piece(number, each | told)
                told = {}
            if run.complete:
                self._ended.add(number)
                yield self._piece(number, {**self._nothing, "finish_reason": self._reason(number)})

    def _fresh(self, number: int, begun: bool) -> list[Reply]:
        """What is new of a text, as parts of choices. begun: a token has come, or the text is complete."""
        text = self.asked.runs[number].fresh()
        if self.asked.parsers is not None:
            return [{"delta": _delta(each)} for each in self.asked.parsers[number].taken()]
        if self.asked.echo and self.asked.logprobs and begun and not self._at[number]:
            text = self._prompt_text(number) + text
        return [{"text": text}] if text else []

    @property
    def _nothing(self) -> Reply:
        """A part of a choice without any text."""
        return {"delta": {}} if self.asked.chat else {"text": ""}

    def _reason(self, number: int) -> str:
        reason = self.asked.runs[number].completion().finish_reason
        return reason if self.asked.parsers is None else self.asked.parsers[number].finish_reason(reason)

    def last(self) -> Iterator[Reply]:
        """What follows the texts: the usage, if it was asked for."""
        if self.asked.usage:
            completions = [run.completion() for run in self.asked.runs]
            yield {**self._part, "choices": [], "usage": self.usage(), **_timings(completions)}

    def texts(self) -> list[str]:
        """Prompts and what follows them, as far as it came."""
        prompts = map(self._tokenizer.decode, self.asked.prompts)
        return [*prompts, *(run.completion().text for run in self.asked.runs)]

    def usage(self) -> Reply:
        """The tokens of prompts and texts; a prompt of several texts counts once."""
        asked = self.asked
        completions = [run.completion() for run in asked.runs]
        prompt = sum(map(len, asked.prompts))
        texts = sum(len(each.token_ids) for each in completions)
        cached = sum(completions[at].cached_tokens for at in range(0, len(completions), asked.n))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": texts,
            "total_tokens": prompt + texts,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": self._reasoning_tokens(), **_drafts(completions)},
        }

    def drafts(self) -> tuple[int, int]:
        """The tokens that were guessed, and those of them that were right."""
        return _counted(run.completion() for run in self.asked.runs)

    def _reasoning_tokens(self) -> int:
        """The tokens of what the texts thought aloud, as that text alone has them."""
        thoughts = (parser.reasoning for parser in self.asked.parsers or ())
        return sum(len(self._tokenizer.encode(text, add_special=False)) for text in thoughts if text)

    def _choice(self, number: int, completion: Completion) -> Reply:
        said: Reply = {"index": number}
        if self.asked.parsers is not None:
            said["message"] = _message(self.asked.parsers[number])
        else:
            said["text"] = (self._prompt_text(number) if self.asked.echo else "") + completion.text
            if self.asked.prompt_logprobs:
                said["prompt_logprobs"] = _of_prompt(completion)
        said["logprobs"] = self._logprobs(number, completion.logprobs or []) if self.asked.logprobs else None
        said["finish_reason"] = self._reason(number)
        return said | self._ids(completion.token_ids) | ({} if self.asked.chat else self._prompt_ids(number))

    def _ids(self, ids: list[int]) -> Reply:
        """The ids of a text, under the names that they are asked for by."""
        return dict.fromkeys(["tokens"] * self.asked.tokens + ["token_ids"] * self.asked.token_ids, ids)

    def _prompt_ids(self, number: int) -> Reply:
        """The ids of a text's prompt, if they were asked for: vLLM has them in a choice, but of a chat beside them."""
        return {"prompt_token_ids": self.asked.prompt_of(number)} if self.asked.token_ids else {}

    def _piece(self, number: int, said: Reply) -> Reply:
        choice = {"index": number, "logprobs": None, "finish_reason": None} | said
        usage = self._usage_so_far(number) if self.asked.usage_so_far else None
        return {**self._part, "choices": [choice], **({"usage": usage} if self.asked.usage else {})}

    def _usage_so_far(self, number: int) -> Reply:
        prompt, text = len(self.asked.prompt_of(number)), self.asked.runs[number].generated
        return {"prompt_tokens": prompt, "completion_tokens": text, "total_tokens": prompt + text}

    def _prompt_text(self, number: int) -> str:
        return self._tokenizer.decode(self.asked.prompt_of(number))

    def _logprobs(self, number: int, logprobs: Sequence[TokenLogprob]) -> Reply:
        if self.asked.chat:
            return {"content": [_in_chat(each) for each in logprobs], "refusal": None}
        said: Reply = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for text, each in [*self._echoed(number), *((None, each) for each in logprobs)]:
            said["tokens"].append(_name(each) if text is None else text)
            said["token_logprobs"].append(each and each.logprob)
            said["top_logprobs"].append(each and _most_probable(each))
            said["text_offset"].append(self._at[number])
            self._at[number] += len(each.token if text is None else text)
        return said

    def _echoed(self, number: int) -> list[tuple[str | None, TokenLogprob | None]]:
        """The tokens of an echoed prompt that is not told of yet. Of the first there is only its text."""
        if not self.asked.echo or self._at[number]:
            return []
        first = self._tokenizer.piece(self.asked.prompt_of(number)[0]).decode(errors="replace")
        told = self.asked.runs[number].completion().prompt_logprobs or []
        return [(first, None), *((None, each) for each in told[1:])]


def _of_prompt(completion: Completion) -> list[dict[str, Reply] | None]:
    """What vLLM says of a prompt's tokens: by id, of each and of the most probable ones. Of the first there is nothing;
    of a token that is not among the most probable ones there is no rank.
    """
    told: list[dict[str, Reply] | None] = []
    for token in completion.prompt_logprobs or []:
        if token is None:
            told.append(None)
            continue
        found: dict[str, Reply] = {}
        for rank, each in enumerate((*token.top_logprobs, token), 1):
            known = rank if rank <= len(token.top_logprobs) else None
            said = {"logprob": each.logprob, "rank": known, "decoded_token": each.token}
            found.setdefault(str(each.token_id), said)
        told.append(found)
    return told


def _message(parser: ReplyParser) -> Reply:
    """A whole message that may have thinking and calls, the former under both names that clients look for."""
    said: Reply = {"role": "assistant", "content": parser.content or (None if parser.calls else ""), "refusal": None}
    if parser.reasoning:
        said |= {"reasoning_content": parser.reasoning, "reasoning": parser.reasoning}
    if parser.calls:
        said["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in parser.calls
        ]
    return said


def _delta(delta: Delta) -> Reply:
    """A piece of a message."""
    match delta:
        case Content():
            return {"content": delta.text}
        case Reasoning():
            return {"reasoning_content": delta.text, "reasoning": delta.text}
        case CallBegun():
            function = {"name": delta.name, "arguments": ""}
            return {"tool_calls": [{"index": delta.index, "id": delta.id, "type": "function", "function": function}]}
        case CallArguments():
            return {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.text}}]}


def _in_chat(token: TokenLogprob) -> Reply:
    top = [{"token": each.token, "logprob": each.logprob, "bytes": each.bytes} for each in token.top_logprobs]
    return {"token": token.token, "logprob": token.logprob, "bytes": token.bytes, "top_logprobs": top}


def _most_probable(token: TokenLogprob) -> dict[str, float]:
    """The log-probabilities of the most probable tokens and of this one, by their texts; of two with one text the more
    probable one's.
    """
    found: dict[str, float] = {}
    for each in (*token.top_logprobs, token):
        found.setdefault(_name(each), each.logprob)
    return found


def _name(token: TopLogprob) -> str:
    """A token's text; where that is no UTF-8, its bytes, as OpenAI writes them."""
    try:
        return bytes(token.bytes).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)


def _drafts(completions: Sequence[Completion]) -> Reply:
    """How many drafts were right, where any are made, under OpenAI's names."""
    if not any("drafted" in each.timings for each in completions):
        return {}
    drafted, accepted = _counted(completions)
    return {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": drafted - accepted}


def _counted(completions: Iterable[Completion]) -> tuple[int, int]:
    """The drafts of some texts, and how many were right."""
    times = [each.timings for each in completions]
    drafted, accepted = (sum(int(each.get(name) or 0) for each in times) for name in ("drafted", "accepted"))
    return drafted, accepted


def _timings(completions: Sequence[Completion]) -> Reply:
    """Of a lone text the times, under the names of llama.cpp's server."""
    if len(completions) != 1:
        return {}
    (one,) = completions
    times, read, texts = one.timings, len(one.prompt_token_ids) - one.cached_tokens, len(one.token_ids)
    first, total = times["ttft_s"] or 0.0, times["total_s"] or 0.0
    said = {
        "cache_n": one.cached_tokens,
        "prompt_n": read,
        "prompt_ms": 1000 * first,
        "prompt_per_second": times["prefill_tok_s"],
        "predicted_n": texts,
        "predicted_ms": 1000 * (total - first),
        "predicted_per_second": times["decode_tok_s"],
    }
    if "drafted" in times:
        said |= {"draft_n": times["drafted"], "draft_n_accepted": times["accepted"]}
    return {"timings": said}
