"""Every fault a client can see, and its OpenAI-shaped body.

ApiError
├── InvalidRequestError      400  the request itself is wrong; `param` names the field
├── UnsupportedMediaError    415  the body is not JSON
├── AuthenticationError      401
├── ModelNotFoundError       404
├── JobNotFoundError         404
├── FileNotFoundHereError    404
├── BatchNotFoundError       404
├── StorageError             507  the disk is full, or refuses
├── ConflictError            409  what it is about is not in a state for it
├── KeyReusedError           422  the idempotency key stands for another request
├── RateLimitedError         429  this key sent too much
├── QueueIsFullError         429  everybody together sent too much
├── KeyQueueIsFullError      429  this key has too much waiting
├── UnavailableError         503  no worker, no room, no Redis
├── ClientGoneError          499  nobody is there to read it
├── RequestTimeoutError      504
└── GenerationFailedError    as the worker said: it gave the answer up, or refused the request
"""

from __future__ import annotations

import math

from msgspec import Struct


class ErrorDetail(Struct, frozen=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(Struct, frozen=True):
    error: ErrorDetail


class ApiError(Exception):
    """Anything that ends a request with an error body."""

    status = 500
    type = "server_error"
    code: str | None = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code
        self.headers: dict[str, str] = {}

    @property
    def body(self) -> ErrorBody:
        return ErrorBody(ErrorDetail(self.message, self.type, self.param, self.code))


class InvalidRequestError(ApiError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class UnsupportedMediaError(InvalidRequestError):
    status = 415
    code = "unsupported_media_type"


class AuthenticationError(ApiError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.headers = {"WWW-Authenticate": "Bearer"}


class ModelNotFoundError(ApiError):
    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class ForgottenError(ApiError):
    """What a tenant names is not his, never was, or has outlived its time."""

    status = 404
    type = "invalid_request_error"
    what = ""

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no {self.what} '{name[:100]}', or it is forgotten by now.")


class JobNotFoundError(ForgottenError):
    code = "job_not_found"
    what = "job"


class FileNotFoundHereError(ForgottenError):
    code = "file_not_found"
    what = "file"


class BatchNotFoundError(ForgottenError):
    code = "batch_not_found"
    what = "batch"


class StorageError(ApiError):
    status = 507
    code = "storage_failed"


class ConflictError(ApiError):
    status = 409
    type = "invalid_request_error"
    code = "conflict"


class KeyReusedError(ApiError):
    """The Idempotency-Key draft of the IETF (section 2.7) asks for this status."""

    status = 422
    type = "invalid_request_error"
    code = "idempotency_key_reused"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was sent before, with another request.")


class RetryLaterError(ApiError):
    """A fault that time mends; the client is told how much of it."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(max(1, math.ceil(retry_after_s)))}


class RateLimitedError(RetryLaterError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class QueueIsFullError(RetryLaterError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class KeyQueueIsFullError(RetryLaterError):
    status = 429
    type = "rate_limit_error"
    code = "key_queue_full"


class UnavailableError(RetryLaterError):
    status = 503
    code = "service_unavailable"

    def __init__(self, message: str, *, retry_after_s: float = 5.0) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


class StoreIsFullError(UnavailableError):
    """Redis is at its memory limit: nothing was enqueued."""


class ClientGoneError(ApiError):
    status = 499
    code = "client_gone"

    def __init__(self) -> None:
        super().__init__("The client has closed the connection.")


class RequestTimeoutError(ApiError):
    status = 504
    code = "timeout"


class GenerationFailedError(ApiError):
    """What a worker answered instead of tokens: a refusal (4xx) or a breakdown (5xx)."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, param=param, code=code)
        # A worker of another version must not make us send what is no HTTP error.
        self.status = status if 400 <= status <= 599 else 500
        self.type = type_of_status(self.status)


def type_of_status(status: int) -> str:
    """Return OpenAI's `error.type` for an HTTP status."""
    match status:
        case 401 | 403:
            return "authentication_error"
        case 429:
            return "rate_limit_error"
        case _ if status < 500:
            return "invalid_request_error"
        case _:
            return "server_error"
