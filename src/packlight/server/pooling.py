"""Requests for what a pooling makes of texts: vectors, scores of a reranker.

A model that generates reads texts in slots, as it reads prompts: they wait in the engine's queue, and streams go on
beside them. An encoder has no other work: its steps run on a thread of this module, one request after the other in
each.
"""

import asyncio
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from starlette.requests import ClientDisconnect, Request

from packlight.common.errors import PacklightError
from packlight.server.accounts import account_of
from packlight.server.errors import api_error
from packlight.server.generation import Desk
from packlight.server.streams import until_left

if TYPE_CHECKING:
    from packlight.llm import LLM


class Pooler:
    """What reads texts for one model."""

    def __init__(self, llm: "LLM", desk: Desk, most_waiting: int):
        """most_waiting: requests to an encoder that may wait for another one."""
        self._llm, self._desk, self._most = llm, desk, most_waiting
        self._thread = ThreadPoolExecutor(1, "pooling")
        self._under_way = 0  # requests to an encoder

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def check_room(self) -> None:
        """Raises ApiError where not one request more may wait."""
        self._desk.check_room()
        if self._under_way > self._most:
            raise self._desk.full(f"{self._under_way - 1} requests wait already")

    async def rows(self, request: Request, texts: Sequence[list[int]], pooling: str) -> list[np.ndarray]:
        """A row for each text of token ids, not made to be of length 1.

        Raises ApiError, and ClientDisconnect where the client leaves: nothing more is read then.
        """
        account_of(request.scope).prompt_tokens = sum(map(len, texts))
        left = asyncio.ensure_future(until_left(request))
        try:
            if self._llm.model.encodes:
                return await self._encoded(left, texts, pooling)
            return await self._read(request, left, texts, pooling)
        finally:
            left.cancel()

    async def _read(
        self, request: Request, left: asyncio.Future[None], texts: Sequence[list[int]], pooling: str
    ) -> list[np.ndarray]:
        readings = self._llm.readings(texts, pooling)
        answers = self._desk.submit(readings)
        left.add_done_callback(lambda _: answers.leave())
        try:
            await answers.all()
            if not answers.done:
                raise ClientDisconnect
            return [reading.row for reading in readings]
        finally:
            account_of(request.scope).queue_s = answers.queued
            answers.close()

    async def _encoded(self, left: asyncio.Future[None], texts: Sequence[list[int]], pooling: str) -> list[np.ndarray]:
        self.check_room()
        self._under_way += 1
        try:
            rows: dict[int, np.ndarray] = {}
            for key, numbers in self._llm.plan.text_groups([len(ids) for ids in texts]):
                call = functools.partial(self._llm.encode_group, key, [texts[number] for number in numbers], pooling)
                made = asyncio.get_running_loop().run_in_executor(self._thread, call)
                try:
                    await asyncio.wait((made, left), return_when=asyncio.FIRST_COMPLETED)
                    if left.done():
                        raise ClientDisconnect
                    rows |= zip(numbers, await made, strict=True)
                finally:
                    made.cancel()  # where it waits for the thread, it never runs
            return [rows[number] for number in range(len(texts))]
        except PacklightError as error:
            raise api_error(error) from None
        finally:
            self._under_way -= 1
