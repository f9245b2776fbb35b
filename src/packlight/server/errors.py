"""Errors as OpenAI's clients read them: a status, a type, the field that is wrong, a code."""

import dataclasses
from typing import Any

from packlight.common.errors import (
    ConfigError,
    ContextLengthError,
    NonFiniteLogitsError,
    PacklightError,
    UnsupportedError,
)
from packlight.model.text.chat import ChatTemplateError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


@dataclasses.dataclass(frozen=True)
class ApiError(Exception):
    """What a request is answered instead."""

    status: int
    message: str
    param: str | None = None  # the field that is wrong
    code: str | None = None
    retry_after: int | None = None  # seconds

    @property
    def type(self) -> str:
        return TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    @property
    def body(self) -> dict[str, Any]:
        said = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": said}

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def wrong(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """A request that cannot be honoured, because of this field."""
    return ApiError(400, message, param, code)


def api_error(error: BaseException, param: str | None = None) -> ApiError:
    """How a request is told of an error. param: the field that it follows from, if it follows from one."""
    match error:
        case ApiError():
            return error
        case ContextLengthError():
            # clients know it by OpenAI's first words: litellm looks for nothing else
            said = f"this model's maximum context length is exceeded: {error}"
            return ApiError(400, said, param, "context_length_exceeded")
        case ChatTemplateError():
            return ApiError(400, str(error), param, "chat_template")
        case UnsupportedError():
            return ApiError(400, str(error), param, "unsupported_model")
        case ConfigError():
            return ApiError(400, str(error), param, "invalid_value")
        case NonFiniteLogitsError() | PacklightError():
            return ApiError(500, str(error))
    return ApiError(500, "the server failed at this request; its log says how")
