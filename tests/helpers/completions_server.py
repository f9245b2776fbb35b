"""A server that speaks the least of OpenAI's API and has no model: what the load generator is tried on.

    python completions_server.py PORT [SECONDS]

Each word of an answer takes SECONDS. A prompt that begins with a token of REFUSED or CUT fails: by a status, or in the
middle of its stream. What has been read is remembered, for `cached_tokens`.
"""

import asyncio
import itertools
import json
import sys
from collections.abc import Sequence

REFUSED, CUT = 1, 2


class Server:
    def __init__(self, seconds: float):
        self._seconds = seconds
        self._read: list[list[int]] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /health"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        else:
            length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            await self._complete(json.loads(await reader.readexactly(int(length.split(b":")[1]))), writer)
        await writer.drain()
        writer.close()

    async def _complete(self, body: dict, writer: asyncio.StreamWriter) -> None:
        prompt = body["prompt"]
        if prompt[0] == REFUSED:
            writer.write(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nfull")
            return
        cached = max((common(prompt, old) for old in self._read), default=0)
        self._read.append(prompt)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        self._event(writer, {"choices": [{"text": ""}]}, comment=b": ping\n\n")
        for i in range(body["max_tokens"]):
            await asyncio.sleep(self._seconds)
            if prompt[0] == CUT and i == 1:
                self._event(writer, {"error": {"message": "it broke"}})
                break
            self._event(writer, {"choices": [{"text": "word ", "finish_reason": None}], "usage": None})
        usage = {"completion_tokens": body["max_tokens"], "prompt_tokens_details": {"cached_tokens": cached}}
        self._event(writer, {"choices": [], "usage": usage})
        if prompt[0] != CUT:
            self._chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")

    def _event(self, writer: asyncio.StreamWriter, event: dict, comment: bytes = b"") -> None:
        self._chunk(writer, comment + b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))


def common(a: Sequence, b: Sequence) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


async def main() -> None:
    server = Server(float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
    async with await asyncio.start_server(server.answer, "127.0.0.1", int(sys.argv[1])) as listening:
        await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
