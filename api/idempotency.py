"""The header Idempotency-Key: what it may look like, and which requests are the same.

Semantics of draft-ietf-httpapi-idempotency-key-header-06, where a request that comes while the
first is still running is not refused (409 there) but gets the same job's answer.
"""

from __future__ import annotations

import hashlib

import msgspec

from api.errors import InvalidRequestError
from worker.wire import keys
from worker.wire.queueing import Terms

HEADER = "Idempotency-Key"
MAX_LENGTH = 255  # as Stripe's


def with_key(terms: Terms, given: str | None, tenant: str, path: str, body: bytes) -> Terms:
    """Return the terms with the request's key, if it has one; raises InvalidRequestError.

    Who sends one means to ask again, so the job does not end with the client's connection.
    """
    if given is None:
        return terms
    note = keys.idempotency(tenant, hashlib.sha256(checked_key(given).encode()).hexdigest())
    return terms._replace(
        idempotency_key=note, body_digest=digest_of(path, body), outlives_client=True
    )


def checked_key(given: str) -> str:
    """Return the key that a header names; raises InvalidRequestError."""
    # The draft writes a quoted string, nearly all clients write it bare: both are the same key.
    key = given.strip().removeprefix('"').removesuffix('"')
    if not 0 < len(key) <= MAX_LENGTH or not key.isprintable():
        raise InvalidRequestError(
            f"{HEADER} must be 1 to {MAX_LENGTH} printable characters.", code="invalid_header"
        )
    return key


def digest_of(path: str, body: bytes) -> str:
    """Equal for bodies that mean the same JSON, however they are written."""
    canonical = msgspec.json.encode(msgspec.json.decode(body), order="sorted")
    return hashlib.sha256(path.encode() + b"\0" + canonical).hexdigest()
