"""Requests for texts, from the queue to the last event: whole answers, streams, clients that leave, errors."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response

from packlight.server.accounts import CLIENT_LEFT, account_of
from packlight.server.generation import Desk
from packlight.server.replies import Replies
from packlight.server.streams import DONE, PING, EventStream, events, json_response, until_left

PING_SECONDS = 15.0  # of silence on a stream


class Generating:
    """One request for texts."""

    def __init__(self, desk: Desk, replies: Replies, request: Request, texts_noted: bool = False):
        """Queues the request's runs. texts_noted: its account gets prompts and answers too.

        Raises ApiError where too many wait.
        """
        self._texts_noted = texts_noted
        self._replies, self._asked = replies, replies.asked
        self._answers = desk.submit(self._asked.runs)
        self._account = account_of(request.scope)
        self._gone = asyncio.ensure_future(until_left(request))
        self._gone.add_done_callback(lambda _: self._answers.leave())

    async def response(self, headers: dict[str, str]) -> Response:
        """The answer, whole or as it comes. Raises ApiError."""
        if not self._asked.stream:
            return await self._whole(headers)
        parts = self._parts()
        begun = await anext(parts, None)  # an error that comes before the first token has a status of its own
        return Response(status_code=CLIENT_LEFT) if begun is None else EventStream(_behind(begun, parts), headers)

    async def _whole(self, headers: dict[str, str]) -> Response:
        try:
            await self._answers.all()
            left = self._answers.left and not self._answers.done
            return Response(status_code=CLIENT_LEFT) if left else json_response(self._replies.whole(), headers=headers)
        finally:
            self._close()

    async def _parts(self) -> AsyncGenerator[bytes]:
        """The events of a stream, those of a step together. None follow where the client leaves."""
        answers, replies = self._answers, self._replies
        opening = True
        try:
            while answers.runs:
                came = await answers.changed(PING_SECONDS)
                if answers.left:
                    return
                if answers.done:
                    break
                part = b"" if came else PING
                if opening:
                    part, opening = part + events(replies.first()), False
                part += events(replies.pieces())
                if part:
                    yield part
            begin = events(replies.first()) if opening else b""
            yield begin + events([*replies.pieces(), *replies.last()]) + DONE
        finally:
            self._close()

    def _close(self) -> None:
        self._gone.cancel()
        self._answers.close()
        usage, account = self._replies.usage(), self._account
        account.prompt_tokens, account.generated_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        account.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
        account.drafted_tokens, account.accepted_tokens = self._replies.drafts()
        if self._answers.first_token is not None:
            account.first_token_s = self._answers.first_token - account.began
        account.queue_s = self._answers.queued
        if self._texts_noted:
            account.texts = self._replies.texts()


async def _behind(begun: bytes, parts: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with contextlib.aclosing(parts):
        yield begun
        async for part in parts:
            yield part
