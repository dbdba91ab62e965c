"""A tenant's batches: make, look, list, cancel."""

from __future__ import annotations

import hashlib
import time
import uuid
from functools import partial

from redis.asyncio import Redis

from api.batches.file_desk import DEFAULT_TTL_S, FileDesk
from api.batches.hold import ENDS
from api.batches.objects import BatchBody, BatchList, BatchRequest, batch_body
from api.batches.paging import find_page
from api.endpoints import ENDPOINTS
from api.errors import BatchNotFoundError, ConflictError, InvalidRequestError, KeyReusedError
from api.gateway import reachable
from api.validation import check_metadata
from worker.wire import batch_store, keys
from worker.wire.batch_store import Batch, BatchSpec, BatchState

WINDOW_S = 24 * 3600


class BatchDesk:
    """Batches of other tenants are not there."""

    def __init__(self, redis: Redis, files: FileDesk) -> None:
        self.files = files
        self._redis = redis

    async def create(
        self, wanted: BatchRequest, tenant: str, key: str | None = None, digest: str = ""
    ) -> BatchBody:
        """Make a batch, whose file is checked later; raises InvalidRequestError.

        With an idempotency `key` it is the one that a request of this `digest` has made before;
        raises KeyReusedError where the key stands for another.
        """
        if wanted.endpoint not in ENDPOINTS:
            raise InvalidRequestError(
                f"'endpoint' must be one of {', '.join(ENDPOINTS)}.", param="endpoint"
            )
        check_metadata(wanted.metadata or {})
        batch_id = _new_id(tenant, key)
        # Before the file is looked for, which may be deleted once its batch is done.
        if key is not None and await self._was_made(batch_id, digest):
            return await self.look(batch_id, tenant)
        record = await self.files.find(wanted.input_file_id, tenant)
        if record.purpose != "batch":
            raise InvalidRequestError(
                "'input_file_id' must name a file of purpose 'batch'.", param="input_file_id"
            )
        created_at = int(time.time())
        after = wanted.output_expires_after
        spec = BatchSpec(
            tenant=tenant,
            endpoint=wanted.endpoint,
            input_file_id=wanted.input_file_id,
            created_at=created_at,
            expires_at=created_at + WINDOW_S,
            metadata=wanted.metadata or {},
            output_ttl_s=DEFAULT_TTL_S if after is None else checked_ttl(after.seconds),
        )
        state = BatchState()
        if await reachable(batch_store.add_batch(self._redis, batch_id, spec, state, digest)):
            return batch_body(Batch(batch_id, spec, state, is_cancelled=False))
        await self._was_made(batch_id, digest)  # by another request, just now
        return await self.look(batch_id, tenant)

    async def count_open(self) -> dict[str, int]:
        """Count all tenants' batches that have not ended, by status; raises UnavailableError."""
        return await reachable(batch_store.count_open(self._redis))

    async def look(self, batch_id: str, tenant: str) -> BatchBody:
        """Return a batch as it is now; raises BatchNotFoundError."""
        return batch_body(await self._find(batch_id, tenant))

    async def cancel(self, batch_id: str, tenant: str) -> BatchBody:
        """Have a batch ended; what is answered by then is kept. Raises ConflictError if it has."""
        batch = await self._find(batch_id, tenant)
        if batch.state.status in ENDS and not batch.is_cancelled:
            raise ConflictError(f"The batch has ended already: it is {batch.state.status}.")
        await reachable(batch_store.request_cancel(self._redis, batch_id))
        return await self.look(batch_id, tenant)

    async def list(self, tenant: str, limit: int, after: str | None) -> BatchList:
        """Return a tenant's batches, the newest first."""
        find = partial(batch_store.get_batch, self._redis)
        index = keys.batches_of(tenant)
        batches, has_more = await find_page(self._redis, index, limit, after, find)
        bodies = [batch_body(batch) for batch in batches]
        return BatchList(
            data=bodies,
            first_id=bodies[0].id if bodies else None,
            last_id=bodies[-1].id if bodies else None,
            has_more=has_more,
        )

    async def _was_made(self, batch_id: str, digest: str) -> bool:
        """Say whether the batch is there; raises KeyReusedError if another request made it."""
        known = await reachable(batch_store.get_digest(self._redis, batch_id))
        if known is not None and known != digest:
            raise KeyReusedError
        return known is not None

    async def _find(self, batch_id: str, tenant: str) -> Batch:
        batch = await reachable(batch_store.get_batch(self._redis, batch_id))
        if batch is None or batch.spec.tenant != tenant:
            raise BatchNotFoundError(batch_id)
        return batch


def checked_ttl(seconds: int) -> int:
    """Check how long a file is to live; raises InvalidRequestError."""
    if not 3600 <= seconds <= DEFAULT_TTL_S:
        raise InvalidRequestError(
            f"'expires_after.seconds' must be between 3600 and {DEFAULT_TTL_S}.",
            param="expires_after",
        )
    return seconds


def _new_id(tenant: str, key: str | None) -> str:
    """Name a batch; the same key of the same tenant always names the same one."""
    if key is None:
        return f"batch_{uuid.uuid4().hex}"
    named = f"{tenant}\0{key}".encode()
    return f"batch_{hashlib.sha256(named).hexdigest()[:32]}"
