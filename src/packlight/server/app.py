"""The routes of the server: bodies in, answers out. What requests mean is said in `fields` and `requests`, the shapes
of answers in `replies`; the engine's thread is behind `generation`.
"""

import asyncio
import base64
import contextlib
import functools
import importlib.metadata
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from packlight import conversing
from packlight.compile.counter import CompileCounter
from packlight.model.spec.pooling import unit
from packlight.model.text.chat import KEY, prompt_ids, special_texts
from packlight.serve.driver import Bounds
from packlight.server import fields
from packlight.server.accounts import CLIENT_LEFT, account_of
from packlight.server.errors import ApiError, api_error
from packlight.server.generating import Generating
from packlight.server.generation import Desk
from packlight.server.limits import most_waiting, most_waiting_tokens
from packlight.server.metrics import Metrics
from packlight.server.openapi import document
from packlight.server.pooling import Pooler
from packlight.server.replies import Replies
from packlight.server.requests import Asked, Requests
from packlight.server.settings import Settings
from packlight.server.streams import json_response

if TYPE_CHECKING:
    from packlight.llm import LLM

Result = TypeVar("Result")
WORKERS = 2  # threads for templates, tokens and grammars


def make_app(llm: "LLM", settings: Settings, metrics: Metrics, report: Callable[[BaseException], None]) -> Starlette:
    """The app that answers for a model, ready for its first chat. report: told of errors that are our own faults."""
    conversing.measure(llm.file.metadata, llm.tokenizer)
    return Server(llm, settings, metrics, report).app()


class Server:
    """One model's routes."""

    def __init__(self, llm: "LLM", settings: Settings, metrics: Metrics, report: Callable[[BaseException], None]):
        self._llm, self._settings, self._report = llm, settings, report
        self._requests = Requests(llm, settings.names, settings.defaults, settings.generic_tools)
        runs = most_waiting(llm.plan.slots) if settings.max_queue is None else settings.max_queue
        bounds = Bounds(llm.plan.slots, runs, most_waiting_tokens(llm.plan.context))
        self.desk = Desk(llm.scheduler, bounds, settings.limits.queue_timeout, metrics.observe_gap, report)
        self._compiles = CompileCounter()
        driver = self.desk.driver
        metrics.watch(
            lambda: driver.running, lambda: driver.waiting, lambda: llm.plan.slots, lambda: self._compiles.count
        )
        self._workers = ThreadPoolExecutor(WORKERS, "request")
        self._pooler = Pooler(llm, self.desk, runs)
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
            "/openapi.json": ("GET", self._openapi),
        }
        routes = []
        for path, (method, handler) in handlers.items():
            for alias in dict.fromkeys((path, path.removeprefix("/v1"))):
                routes.append(Route(alias, self._answered(handler), methods=[method]))
        return Starlette(routes=routes, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.desk.start()
        self._compiles.start()
        yield
        self._compiles.stop()
        await asyncio.to_thread(self.desk.driver.close)
        await asyncio.to_thread(self._workers.shutdown, cancel_futures=True)
        await asyncio.to_thread(self._pooler.close)

    def _answered(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """The handler, whose errors are answers."""

        async def answered(request: Request) -> Response:
            try:
                return await handler(request)
            except ClientDisconnect:
                return Response(status_code=CLIENT_LEFT)
            except ApiError as error:
                account_of(request.scope).reason = error.code
                return json_response(error.body, error.status, error.headers)
            except Exception as error:
                self._report(error)
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
        values, unknown = fields.read(route, decoded, self._settings.warn_unknown)
        return values, {"X-Ignored-Params": ", ".join(map(ascii, unknown))[:1000]} if unknown else {}

    async def _worked(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """What a function gives that takes too long for the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, functools.partial(function, *arguments))

    async def _chat(self, request: Request) -> Response:
        values, headers = await self._read(request, "/v1/chat/completions")
        return await self._generated(request, self._requests.chat, values, headers)

    async def _completions(self, request: Request) -> Response:
        values, headers = await self._read(request, "/v1/completions")
        return await self._generated(request, self._requests.completion, values, headers)

    async def _generated(
        self,
        request: Request,
        understand: Callable[[Mapping[str, Any]], Asked],
        values: Mapping[str, Any],
        headers: dict[str, str],
    ) -> Response:
        self.desk.check_room()
        replies = Replies(await self._worked(understand, values), self._llm.tokenizer, self._fingerprint)
        return await Generating(self.desk, replies, request, self._settings.log_prompts).response(headers)

    async def _embeddings(self, request: Request) -> Response:
        values, headers = await self._read(request, "/v1/embeddings")
        name = self._requests.model(values)
        self._pooler.check_room()
        texts, pooling = await self._worked(self._requests.texts, values)
        vectors = await self._pooler.rows(request, texts, pooling)
        coded = _in_base64 if values.get("encoding_format") == "base64" else _in_floats
        scaled = unit if pooling != "rank" else np.asarray
        embeddings = await self._worked(lambda: [coded(scaled(vector)) for vector in vectors])
        data = [{"object": "embedding", "index": at, "embedding": each} for at, each in enumerate(embeddings)]
        return json_response(
            {"object": "list", "data": data, "model": name, "usage": _read_only(texts)}, headers=headers
        )

    async def _rerank(self, request: Request) -> Response:
        values, headers = await self._read(request, "/v1/rerank")
        name = self._requests.model(values)
        self._pooler.check_room()
        documents, pairs = await self._worked(self._requests.pairs, values)
        scores = [float(row[0]) for row in await self._pooler.rows(request, pairs, "rank")]
        best = sorted(range(len(scores)), key=lambda number: -scores[number])[: values.get("top_n")]
        shown = lambda number: {"document": {"text": documents[number]}} if values.get("return_documents") else {}  # noqa: E731
        results = [{"index": number, "relevance_score": scores[number], **shown(number)} for number in best]
        reply = {"object": "list", "model": name, "usage": _read_only(pairs), "results": results}
        return json_response(reply, headers=headers)

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
            "id": self._settings.names[0],
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
        reply = await self._worked(self._requests.tokenized, values)
        return json_response(reply | {"max_model_len": self._llm.plan.context}, headers=headers)

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
            "model_alias": self._settings.names[0],
            "chat_template": self._llm.file.metadata.get(KEY),
            "total_slots": self._llm.plan.slots,
            "default_generation_settings": {"n_ctx": self._llm.plan.context, "params": dict(self._settings.defaults)},
            "build_info": self._fingerprint,
        }
        return json_response(reply)

    async def _slots(self, _: Request) -> Response:
        return json_response([{"id": slot, **state._asdict()} for slot, state in enumerate(self._llm.engine.slots)])

    async def _openapi(self, _: Request) -> Response:
        return json_response(document(importlib.metadata.version("packlight")))


def _in_floats(vector: np.ndarray) -> msgspec.Raw:
    """Written at once: the event loop would take seconds for the numbers of many vectors."""
    return msgspec.Raw(msgspec.json.encode(vector.tolist()))


def _in_base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _read_only(texts: Sequence[Sequence[int]]) -> dict[str, int]:
    """The usage of texts that are read, and answered by no other."""
    tokens = sum(map(len, texts))
    return {"prompt_tokens": tokens, "total_tokens": tokens}
