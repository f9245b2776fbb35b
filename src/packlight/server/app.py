"""The routes of the server."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from packlight.server.metrics import Metrics
from packlight.server.settings import Settings

if TYPE_CHECKING:
    from packlight.llm import LLM


def make_app(llm: "LLM", settings: Settings, metrics: Metrics, report: Callable[[BaseException], None]) -> Starlette:
    """The app that answers for a model."""

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return Starlette(routes=[Route("/health", health)])
