"""Guards: who may come in, which tenant that is, and how much it may ask for."""

from __future__ import annotations

from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from api.key_ring import Tenant
from api.rate_limit import num_tokens_charged
from api.services import services_of
from worker.wire.messages import GenerateJob

Connection = ASGIConnection[Any, Any, Any, Any]


async def require_key(connection: Connection, _: BaseRouteHandler) -> None:
    """Guard: refuse a wrong key, and note the tenant for whoever comes next.

    A coroutine, though it waits for nothing: Litestar runs other functions in a thread.
    """
    _note_tenant(connection)


async def admit(connection: Connection, _: BaseRouteHandler) -> None:
    """Guard: as `require_key`, and count the request against its tenant."""
    tenant = _note_tenant(connection)
    limiter = services_of(connection).rate_limiter
    if limiter is not None and tenant.limits.requests:
        headers = await limiter.admit(tenant.name, "requests", tenant.limits.requests)
        add_headers(connection, headers)


async def charge(connection: Connection, job: GenerateJob) -> None:
    """Count what a checked request may cost against its tenant; raises RateLimitedError."""
    services, limits = services_of(connection), connection.state.limits
    if services.rate_limiter is not None and limits.tokens:
        cost = num_tokens_charged(job)
        headers = await services.rate_limiter.admit(job.tenant, "tokens", limits.tokens, cost)
        add_headers(connection, headers)


def add_headers(connection: Connection, headers: dict[str, str]) -> None:
    """Have headers sent with the answer, whatever it will be."""
    known: dict[str, str] = getattr(connection.state, "response_headers", {})
    connection.state.response_headers = {**known, **headers}


def _note_tenant(connection: Connection) -> Tenant:
    header = connection.headers.get("authorization", "")
    tenant = services_of(connection).keys.tenant_of(header)
    connection.state.tenant, connection.state.limits = tenant.name, tenant.limits
    return tenant
