"""The routes of the server: bodies in, answers out. What requests mean is said in `fields` and `requests`, the shapes
of answers in `replies`; the engine's thread is behind `generation`.
"""

import asyncio
import base64
import contextlib
import dataclasses
import functools
import importlib.metadata
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from packlight.common.errors import PacklightError
from packlight.model.text.chat import KEY, prompt_ids, special_texts
from packlight.serve.driver import Bounds
from packlight.serve.slots import SlotsTakenError
from packlight.server import fields
from packlight.server.errors import ApiError, api_error
from packlight.server.generation import Answers, Desk
from packlight.server.replies import Replies
from packlight.server.requests import Asked, Requests
from packlight.server.streams import DONE, PING, EventStream, events, first_of

if TYPE_CHECKING:
    from packlight.llm import LLM

Result = TypeVar("Result")
PING_SECONDS = 15.0  # of silence on a stream
WORKERS = 2  # threads for templates, tokens and grammars
SLOT_POLL = 0.02  # seconds
LEFT = 499  # the status, as nginx has it, of what nobody reads


def json_response(reply: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(reply), status, headers, "application/json")


@dataclasses.dataclass(frozen=True)
class Options:
    """How a model is served."""

    names: tuple[str, ...]  # of the model, the one that it is shown under first
    bounds: Bounds  # of what waits for a slot
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # sampling, where a body says nothing
    queue_timeout: float = 600.0  # seconds
    warn_unknown: bool = False  # unknown fields are named in a header, not refused
    report: Callable[[BaseException], None] = lambda error: None  # told of our own faults


class Server:
    """One model's routes."""

    def __init__(self, llm: "LLM", options: Options):
        self._llm, self._options = llm, options
        self._requests = Requests(llm, options.names, options.defaults)
        self.desk = Desk(llm.scheduler, options.bounds, options.queue_timeout, report=options.report)
        self._workers = ThreadPoolExecutor(WORKERS, "request")
        self._pooler = ThreadPoolExecutor(1, "pooling")  # its texts wait for slots, others' requests do not wait for it
        self._began = int(time.time())
        self._fingerprint = f"packlight-{importlib.metadata.version('packlight')}"

    def app(self) -> Starlette:
        handlers: dict[str, tuple[str, Callable[[Request], Awaitable[Response]]]] = {
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._completions),
            "/v1/embeddings": ("POST", self._embeddings),
            "/v1/rerank": ("POST", self._rerank),
            "/v1/reranking": ("POST", self._rerank),
            "/v1/models": ("GET", self._models),
            "/v1/models/{name:path}": ("GET", self._model),
            "/tokenize": ("POST", self._tokenize),
            "/detokenize": ("POST", self._detokenize),
            "/tokenizer_info": ("GET", self._tokenizer_info),
            "/apply-template": ("POST", self._apply_template),
            "/health": ("GET", self._health),
            "/props": ("GET", self._props),
            "/slots": ("GET", self._slots),
        }
        routes = []
        for path, (method, handler) in handlers.items():
            for alias in dict.fromkeys((path, path.removeprefix("/v1"))):
                routes.append(Route(alias, self._answered(handler), methods=[method]))
        return Starlette(routes=routes, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.desk.start()
        yield
        await asyncio.to_thread(self.desk.driver.close)
        self._workers.shutdown(cancel_futures=True)
        self._pooler.shutdown(cancel_futures=True)

    def _answered(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """The handler, whose errors are answers."""

        async def answered(request: Request) -> Response:
            try:
                return await handler(request)
            except ApiError as error:
                return json_response(error.body, error.status, error.headers)
            except Exception as error:
                self._options.report(error)
                told = api_error(error)
                return json_response(told.body, told.status)

        return answered

    async def _read(self, request: Request, route: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The honoured fields of a body, and the headers that name the others."""
        body = await request.body()
        try:
            decoded = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ApiError(400, f"the body is no JSON: {error}", code="invalid_json") from None
        values, unknown = fields.read(route, decoded, self._options.warn_unknown)
        return values, {"X-Ignored-Params": ", ".join(map(ascii, unknown))[:1000]} if unknown else {}

    async def _worked(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """What a function gives that takes too long for the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, functools.partial(function, *arguments))

    async def _chat(self, request: Request) -> Response:
        values, headers = await self._read(request, "/v1/chat/completions")
        return await self._generated(request, await self._worked(self._requests.chat, values), headers)

    async def _completions(self, request: Request) -> Response:
        values, headers = await self._read(request, "/v1/completions")
        return await self._generated(request, await self._worked(self._requests.completion, values), headers)

    async def _generated(self, request: Request, asked: Asked, headers: dict[str, str]) -> Response:
        """The answer to a request for texts, whole or as it comes."""
        answers = self.desk.submit(asked.runs)
        replies = Replies(asked, self._llm.tokenizer, self._fingerprint)
        gone = asyncio.ensure_future(_left(request))
        if not asked.stream:
            return await self._whole(answers, asked, replies, gone, headers)
        parts = self._parts(answers, asked, replies, gone)
        begun = await anext(parts, None)  # an error that comes before the first token has a status of its own
        return Response(status_code=LEFT) if begun is None else EventStream(_behind(begun, parts), headers)

    async def _whole(
        self, answers: Answers, asked: Asked, replies: Replies, gone: "asyncio.Future[None]", headers: dict[str, str]
    ) -> Response:
        done = asyncio.ensure_future(answers.all())
        try:
            while not await first_of(done, gone, PING_SECONDS):
                if gone.done():
                    return Response(status_code=LEFT)
            return json_response(replies.whole(), headers=headers)
        finally:
            self._close(answers, asked, done, gone)

    async def _parts(
        self, answers: Answers, asked: Asked, replies: Replies, gone: "asyncio.Future[None]"
    ) -> AsyncIterator[bytes]:
        """The events of a stream, those of a step together. None follow where the client leaves."""
        changed = asyncio.ensure_future(answers.changed())
        opening = True
        try:
            while answers.runs:
                came = await first_of(changed, gone, PING_SECONDS)
                if gone.done():
                    return
                if answers.done:
                    break
                part = b"" if came else PING
                if opening:
                    part, opening = part + events(replies.first()), False
                part += events(replies.pieces(last=False))
                if came:
                    changed = asyncio.ensure_future(answers.changed())
                if part:
                    yield part
            begin = events(replies.first()) if opening else b""
            yield begin + events([*replies.pieces(last=True), *replies.last()]) + DONE
        finally:
            self._close(answers, asked, changed, gone)

    def _close(self, answers: Answers, asked: Asked, *waits: "asyncio.Future[Any]") -> None:
        for wait in waits:
            wait.cancel()
        answers.close()

    async def _embeddings(self, request: Request) -> Response:
        values, headers = await self._read(request, "/v1/embeddings")
        name = self._requests.model(values)
        texts = await self._worked(self._requests.texts, values)
        vectors = await self._pooled(self._llm.embed, texts)
        base64_wanted = values.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": number,
                "embedding": _in_base64(vector) if base64_wanted else vector.tolist(),
            }
            for number, vector in enumerate(vectors)
        ]
        return json_response(
            {"object": "list", "data": data, "model": name, "usage": _read_only(texts)}, headers=headers
        )

    async def _rerank(self, request: Request) -> Response:
        values, headers = await self._read(request, "/v1/rerank")
        name = self._requests.model(values)
        query, documents, pairs = await self._worked(self._requests.pairs, values)
        scores = (await self._pooled(self._llm.rerank, query, documents)).tolist()
        best = sorted(range(len(scores)), key=lambda number: -scores[number])[: values.get("top_n")]
        shown = lambda number: {"document": {"text": documents[number]}} if values.get("return_documents") else {}  # noqa: E731
        results = [{"index": number, "relevance_score": scores[number], **shown(number)} for number in best]
        reply = {"object": "list", "model": name, "usage": _read_only(pairs), "results": results}
        return json_response(reply, headers=headers)

    async def _pooled(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """What `embed` or `rerank` gives, which wait for a slot where the model needs one."""
        until = time.monotonic() + self._options.queue_timeout
        while True:
            call = functools.partial(function, *arguments)
            try:
                return await asyncio.get_running_loop().run_in_executor(self._pooler, call)
            except SlotsTakenError as error:
                if time.monotonic() > until:
                    patience = self.desk.driver.patience
                    raise ApiError(503, str(error), code="queue_timeout", retry_after=patience) from None
                await asyncio.sleep(SLOT_POLL)
            except PacklightError as error:
                raise api_error(error) from None

    async def _models(self, _: Request) -> Response:
        return json_response({"object": "list", "data": [self._described()]})

    async def _model(self, request: Request) -> Response:
        self._requests.model({"model": request.path_params["name"]})
        return json_response(self._described())

    def _described(self) -> dict[str, Any]:
        llm = self._llm
        numbers = {
            "n_ctx": llm.plan.context,
            "n_ctx_train": llm.model.context_length,
            "n_vocab": llm.model.vocab_size,
            "n_embd": llm.model.embedding_length,
            "size": llm.weights_bytes,
        }
        return {
            "id": self._options.names[0],
            "object": "model",
            "created": self._began,
            "owned_by": "packlight",
            "context_length": llm.plan.context,
            "max_model_len": llm.plan.context,
            "meta": numbers,
        }

    async def _tokenize(self, request: Request) -> Response:
        values, headers = await self._read(request, "/tokenize")
        self._requests.model(values)
        ids = await self._worked(self._requests.tokens, values)
        pieces = [self._llm.tokenizer.piece(each) for each in ids]
        texts = [piece.decode(errors="replace") for piece in pieces]
        told: list[Any] = list(ids)
        if values.get("with_pieces"):
            told = [
                {"id": each, "piece": text if piece == text.encode() else list(piece)}
                for each, piece, text in zip(ids, pieces, texts, strict=True)
            ]
        reply = {"tokens": told, "count": len(ids), "max_model_len": self._llm.plan.context}
        return json_response(
            reply | ({"token_strs": texts} if values.get("return_token_strs") else {}), headers=headers
        )

    async def _detokenize(self, request: Request) -> Response:
        values, headers = await self._read(request, "/detokenize")
        self._requests.model(values)
        text = await self._worked(self._requests.text, values)
        return json_response({"prompt": text, "content": text}, headers=headers)

    async def _tokenizer_info(self, _: Request) -> Response:
        metadata, tokenizer = self._llm.file.metadata, self._llm.tokenizer
        bos, eos = special_texts(metadata, tokenizer)
        return json_response(
            {
                "tokenizer_class": metadata.get("tokenizer.ggml.model"),
                "pre_tokenizer": metadata.get("tokenizer.ggml.pre"),
                "vocab_size": tokenizer.vocab_size,
                "model_max_length": self._llm.plan.context,
                "bos_token": bos or None,
                "eos_token": eos or None,
                "add_bos_token": tokenizer.add_bos,
                "chat_template": metadata.get(KEY),
            }
        )

    async def _apply_template(self, request: Request) -> Response:
        values, headers = await self._read(request, "/apply-template")
        self._requests.model(values)
        made = await self._worked(self._requests.rendered, values)
        ids = await self._worked(prompt_ids, self._llm.tokenizer, made)
        return json_response({"prompt": made.text, "tokens": ids, "count": len(ids)}, headers=headers)

    async def _health(self, _: Request) -> Response:
        return json_response({"status": "ok"})

    async def _props(self, _: Request) -> Response:
        reply = {
            "model_alias": self._options.names[0],
            "chat_template": self._llm.file.metadata.get(KEY),
            "total_slots": self._llm.plan.slots,
            "default_generation_settings": {"n_ctx": self._llm.plan.context, "params": dict(self._options.defaults)},
            "build_info": self._fingerprint,
        }
        return json_response(reply)

    async def _slots(self, _: Request) -> Response:
        return json_response([])


async def _left(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _behind(begun: bytes, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield begun
    async for part in parts:
        yield part


def _in_base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _read_only(texts: Sequence[Sequence[int]]) -> dict[str, int]:
    """The usage of texts that are read, and answered by no other."""
    tokens = sum(map(len, texts))
    return {"prompt_tokens": tokens, "total_tokens": tokens}
