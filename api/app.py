"""create_app(): routes, the life of the Redis connection, and how faults become answers."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from litestar import Litestar, Request, Response
from litestar.config.cors import CORSConfig
from litestar.datastructures import MutableScopeHeaders, State
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.types import Message, Scope
from redis.asyncio import BlockingConnectionPool, Redis

from api.batch_controller import BatchController
from api.batches.batch_desk import BatchDesk
from api.batches.disk import FileDisk
from api.batches.file_desk import FileDesk
from api.batches.run import Desks
from api.batches.runner import BatchRunner
from api.completions import CompletionController
from api.errors import ApiError, ErrorBody, ErrorDetail, type_of_status
from api.file_controller import FileController
from api.gateway import GenerationGateway, RedisGateway
from api.health import health, metrics, ready, show_load, show_version
from api.job_controller import JobController
from api.job_desk import JobDesk
from api.metrics import ApiMetrics
from api.model_controller import ModelController
from api.openapi import openapi_config
from api.rate_limit import RateLimiter
from api.response_api.desk import ResponseDesk
from api.response_controller import ResponseController
from api.sending import ServerApp
from api.services import Services
from api.settings import ApiSettings
from api.steady_connection import steady
from api.tokenization import TokenizationController
from api.webhook_sender import WebhookSender

logger = logging.getLogger(__name__)

MAX_REDIS_CONNECTIONS = 32
REDIS_WAIT_S = 5.0  # for a free connection, and for an answer

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_LOOPBACK_ORIGIN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


def create_app(settings: ApiSettings, gateway: GenerationGateway | None = None) -> Litestar:
    """Build the application; a `gateway` given takes the place of Redis altogether."""
    api_metrics = ApiMetrics()
    return ServerApp(
        route_handlers=[
            CompletionController, ResponseController, JobController, FileController,
            BatchController, ModelController,
            TokenizationController, health, ready, show_load, show_version, metrics,
        ],
        lifespan=[_lifespan(settings, api_metrics, gateway)],
        dependencies={"services": Provide(_services, sync_to_thread=False)},
        exception_handlers={
            ApiError: _on_api_error, HTTPException: _on_http_error, Exception: _on_bug,
        },
        before_send=[_finish_headers],
        cors_config=_cors(settings),
        openapi_config=openapi_config(),
        request_max_body_size=settings.max_body_bytes,
        logging_config=None,
    )  # fmt: skip


def _services(request: Request[Any, Any, State]) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


def _lifespan(
    settings: ApiSettings, api_metrics: ApiMetrics, gateway: GenerationGateway | None
) -> Callable[[Litestar], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        if gateway is not None:
            app.state.services = Services(settings, gateway, api_metrics)
            yield
            return
        async with _connect(settings) as redis:
            redis_gateway = RedisGateway(redis, settings)
            desk = JobDesk(redis, redis_gateway)
            files = FileDesk(redis, FileDisk(Path(settings.files_dir).expanduser()))
            app.state.services = Services(
                settings,
                redis_gateway,
                api_metrics,
                _rate_limiter(redis, settings),
                desk,
                ResponseDesk(redis),
                BatchDesk(redis, files),
            )
            sender = WebhookSender(redis, desk, settings)
            runner = BatchRunner(Desks(redis, redis_gateway, desk, files, settings))
            await redis_gateway.start()
            sender.start()
            runner.start()
            try:
                yield
            finally:
                await runner.close()
                await sender.close()
                await redis_gateway.close()

    return lifespan


def _connect(settings: ApiSettings) -> Redis:
    pool = BlockingConnectionPool.from_url(
        settings.redis_url,
        max_connections=MAX_REDIS_CONNECTIONS,
        timeout=REDIS_WAIT_S,
        socket_timeout=REDIS_WAIT_S,
    )
    return steady(Redis.from_pool(pool))


def _rate_limiter(redis: Redis, settings: ApiSettings) -> RateLimiter | None:
    if settings.rate_limit_requests == 0:
        return None
    return RateLimiter(redis, settings.rate_limit_requests, settings.rate_limit_window)


def _cors(settings: ApiSettings) -> CORSConfig:
    # Without a key any page that somebody reads could use the server of the machine it is read on.
    expose = ["X-Request-Id", "X-Job-Id", "Idempotent-Replayed", "Location", "Retry-After"]
    if settings.api_key:
        return CORSConfig(allow_origins=["*"], expose_headers=expose)
    return CORSConfig(allow_origins=[], allow_origin_regex=_LOOPBACK_ORIGIN, expose_headers=expose)


async def _finish_headers(message: Message, scope: Scope) -> None:
    """Give every answer its request id, and count it."""
    if message["type"] != "http.response.start":
        return
    headers = MutableScopeHeaders.from_message(message)
    headers["X-Request-Id"] = _request_id(scope)
    for name, value in scope.get("state", {}).get("response_headers", {}).items():
        headers[name] = value
    services: Services = scope["litestar_app"].state.services
    endpoint = scope.get("path_template") or "unmatched"
    services.metrics.responses.labels(
        endpoint, scope.get("method", ""), str(message["status"])
    ).inc()


def _request_id(scope: Scope) -> str:
    """Return the client's own id where it is harmless to repeat, or a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(given := value.decode("latin-1")):
            return given
    return f"req_{uuid.uuid4().hex}"


def _on_api_error(_: Request[Any, Any, Any], error: ApiError) -> Response[ErrorBody]:
    return _error_response(error.status, error.body, error.headers)


def _on_http_error(_: Request[Any, Any, Any], error: HTTPException) -> Response[ErrorBody]:
    """Put what Litestar itself refuses (404, 405, 413) into the same body."""
    code = type(error).__name__.removesuffix("Exception")
    code = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", code).lower()
    message = error.detail if error.status_code < 500 else "The server failed."
    detail = ErrorDetail(message, type_of_status(error.status_code), None, code)
    return _error_response(error.status_code, ErrorBody(detail), error.headers or {})


def _on_bug(_: Request[Any, Any, Any], error: Exception) -> Response[ErrorBody]:
    # The request's boundary: the log gets the trace, the client does not.
    logger.error("request failed", exc_info=error)
    return _error_response(500, ApiError("The server failed.").body, {})


def _error_response(
    status: int, body: ErrorBody, headers: Mapping[str, str]
) -> Response[ErrorBody]:
    return Response(body, status_code=status, headers=dict(headers), media_type="application/json")
