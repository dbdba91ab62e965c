"""create_app(): routes, the life of the Redis connection, and how faults become answers."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from litestar import Litestar, Request, Response
from litestar.config.cors import CORSConfig
from litestar.datastructures import MutableScopeHeaders, State
from litestar.di import Provide
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import Message, Scope

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
from api.key_ring import KeyRing, Limits, ring_of
from api.metrics import ApiMetrics
from api.model_controller import ModelController
from api.openapi import openapi_config
from api.rate_limit import RateLimiter
from api.redis_connection import connect
from api.response_api.desk import ResponseDesk
from api.response_controller import ResponseController
from api.sending import ServerApp
from api.services import Services
from api.settings import ApiSettings
from api.tokenization import TokenizationController
from api.webhook_sender import WebhookSender
from worker.wire.logs import REQUEST_ID

logger = logging.getLogger(__name__)

MAX_FORM_PARTS = 8


def create_app(settings: ApiSettings, gateway: GenerationGateway | None = None) -> ServerApp:
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
        multipart_form_part_limit=MAX_FORM_PARTS,
        logging_config=None,
    )  # fmt: skip


def _services(request: Request[Any, Any, State]) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


def _lifespan(
    settings: ApiSettings, api_metrics: ApiMetrics, gateway: GenerationGateway | None
) -> Callable[[Litestar], AbstractAsyncContextManager[None]]:
    key_ring = _key_ring(settings)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        if gateway is not None:
            app.state.services = Services(settings, gateway, api_metrics, key_ring)
            yield
            return
        async with connect(settings.redis_url) as redis:
            redis_gateway = RedisGateway(redis, settings)
            desk = JobDesk(redis)
            files = FileDesk(redis, FileDisk(Path(settings.files_dir).expanduser()))
            app.state.services = Services(
                settings,
                redis_gateway,
                api_metrics,
                key_ring,
                RateLimiter(redis, settings.rate_limit_window),
                desk,
                ResponseDesk(redis),
                BatchDesk(redis, files),
            )
            sender = WebhookSender(redis, desk, settings)
            runner = BatchRunner(Desks(redis, redis_gateway, desk, files, settings, api_metrics))
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


def _key_ring(settings: ApiSettings) -> KeyRing:
    limits = Limits(requests=settings.rate_limit_requests, tokens=settings.rate_limit_tokens)
    return ring_of(settings.api_key, settings.keys_file, limits)


def _cors(settings: ApiSettings) -> CORSConfig | None:
    """Web pages of other origins are let in only where the operator names them."""
    if not settings.cors_origins:
        return None
    expose = ["X-Request-Id", "X-Job-Id", "Idempotent-Replayed", "Location", "Retry-After"]
    return CORSConfig(allow_origins=list(settings.cors_origins), expose_headers=expose)


async def _finish_headers(message: Message, scope: Scope) -> None:
    """Give every answer its request id, and count it."""
    if message["type"] != "http.response.start":
        return
    headers = MutableScopeHeaders.from_message(message)
    headers["X-Request-Id"] = REQUEST_ID.get()
    for name, value in scope.get("state", {}).get("response_headers", {}).items():
        headers[name] = value
    services: Services = scope["litestar_app"].state.services
    endpoint = scope.get("path_template") or "unmatched"
    services.metrics.responses.labels(
        endpoint, scope.get("method", ""), str(message["status"])
    ).inc()


def _on_api_error(_: Request[Any, Any, Any], error: ApiError) -> Response[ErrorBody]:
    return _error_response(error.status, error.body, error.headers)


def _on_http_error(_: Request[Any, Any, Any], error: HTTPException) -> Response[ErrorBody]:
    """Put what Litestar itself refuses (404, 405, 413) into the same body."""
    code = type(error).__name__.removesuffix("Exception")
    code = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", code).lower()
    message = error.detail if error.status_code < 500 else "The server failed."
    param = None
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        param, message = _fault_of(error.extra[0], message)
    detail = ErrorDetail(message, type_of_status(error.status_code), param, code)
    return _error_response(error.status_code, ErrorBody(detail), error.headers or {})


def _fault_of(fault: dict[str, Any], message: str) -> tuple[str | None, str]:
    """Return the name of a wrong query parameter or header, and what is wrong with it."""
    name = fault.get("key")
    return name, f"Invalid value for '{name}': {fault.get('message')}." if name else message


def _on_bug(_: Request[Any, Any, Any], error: Exception) -> Response[ErrorBody]:
    # The request's boundary: the log gets the trace, the client does not.
    logger.error("request failed", exc_info=error)
    return _error_response(500, ApiError("The server failed.").body, {})


def _error_response(
    status: int, body: ErrorBody, headers: Mapping[str, str]
) -> Response[ErrorBody]:
    return Response(body, status_code=status, headers=dict(headers), media_type="application/json")
