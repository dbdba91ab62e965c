"""Guards: who may come in, which tenant that is, and how often it may ask."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from api.errors import AuthenticationError
from api.services import services_of

ANONYMOUS = "anonymous"


async def require_key(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Guard: refuse a wrong key, and note the tenant for whoever comes next.

    A coroutine, though it waits for nothing: Litestar runs other functions in a thread.
    """
    header = connection.headers.get("authorization", "")
    connection.state.tenant = tenant_of(header, services_of(connection).settings.api_key)


async def admit(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Guard: as `require_key`, and count the request against its tenant."""
    await require_key(connection, handler)
    limiter = services_of(connection).rate_limiter
    if limiter is not None:
        connection.state.response_headers = await limiter.admit(connection.state.tenant)


def tenant_of(header: str, keys: Sequence[str]) -> str:
    """Return the tenant behind an Authorization header; raises AuthenticationError."""
    if not keys:
        return ANONYMOUS
    scheme, _, given = header.partition(" ")
    if scheme.lower() != "bearer" or not given.strip():
        raise AuthenticationError("Send your API key in the header 'Authorization: Bearer KEY'.")
    key = given.strip().encode("utf-8", "replace")
    # Every key is compared, and in constant time: the answer's speed tells nothing of any of them.
    matches = [hmac.compare_digest(key, known.encode()) for known in keys]
    if not any(matches):
        raise AuthenticationError("The API key is not valid here.")
    return hashlib.sha256(b"dfastllm tenant\0" + key).hexdigest()[:16]
