"""A tenant's files: kept on disk, known in Redis, forgotten when their time has come."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from redis.asyncio import Redis

from api.batches.disk import FileDisk
from api.batches.objects import FileList, file_body
from api.batches.paging import find_page
from api.errors import FileNotFoundHereError, StorageError
from api.gateway import reachable
from worker.wire import batch_store, keys
from worker.wire.batch_store import FileRecord

DEFAULT_TTL_S = 30 * 86400
CHUNK = 1 << 18


class FileDesk:
    """Files of other tenants are not there."""

    def __init__(self, redis: Redis, disk: FileDisk) -> None:
        self.disk = disk
        self._redis = redis

    async def keep(
        self,
        source: Iterator[bytes],
        tenant: str,
        filename: str,
        purpose: str,
        ttl_s: int,
        file_id: str | None = None,
    ) -> FileRecord:
        """Write a file and make it known, in place of one of that id if there is any.

        Raises StorageError where the disk refuses.
        """
        file_id, created_at = file_id or f"file-{uuid.uuid4().hex}", int(time.time())
        expires_at = created_at + ttl_s
        try:
            num_bytes = await asyncio.to_thread(self.disk.write, file_id, source, expires_at)
        except OSError as error:
            raise StorageError("The server's disk did not take the file.") from error
        record = FileRecord(
            file_id=file_id,
            tenant=tenant,
            filename=filename,
            purpose=purpose,
            num_bytes=num_bytes,
            created_at=created_at,
            expires_at=expires_at,
        )
        await reachable(batch_store.add_file(self._redis, record))
        return record

    async def find(self, file_id: str, tenant: str) -> FileRecord:
        """Return what is known of a file; raises FileNotFoundHereError."""
        record = await reachable(batch_store.get_file(self._redis, file_id))
        if record is None or record.tenant != tenant:
            raise FileNotFoundHereError(file_id)
        return record

    async def list(
        self,
        tenant: str,
        limit: int,
        after: str | None,
        purpose: str | None,
        *,
        is_newest_first: bool = True,
    ) -> FileList:
        """Return a tenant's files, by the time they were made."""

        async def find(name: str) -> FileRecord | None:
            record = await batch_store.get_file(self._redis, name)
            is_wanted = record is not None and purpose in (None, record.purpose)
            return record if is_wanted else None

        index = keys.files_of(tenant)
        records, has_more = await find_page(
            self._redis, index, limit, after, find, is_newest_first=is_newest_first
        )
        bodies = [file_body(record) for record in records]
        return FileList(
            data=bodies,
            first_id=bodies[0].id if bodies else None,
            last_id=bodies[-1].id if bodies else None,
            has_more=has_more,
        )

    async def open(self, file_id: str, tenant: str) -> AsyncIterator[bytes]:
        """Return a file's bytes, chunk by chunk; raises FileNotFoundHereError."""
        record = await self.find(file_id, tenant)
        path = self.disk.path(record.file_id)
        if not await asyncio.to_thread(path.is_file):
            raise FileNotFoundHereError(file_id)
        return _chunks(path)

    async def delete(self, file_id: str, tenant: str) -> None:
        """Forget a file; raises FileNotFoundHereError."""
        record = await self.find(file_id, tenant)
        await reachable(batch_store.drop_file(self._redis, record))
        await asyncio.to_thread(self.disk.drop, record.file_id)

    async def drop_forgotten(self) -> None:
        """Drop from the disk what Redis has forgotten."""
        for name in await asyncio.to_thread(self.disk.stale_names):
            owner = name.partition(".")[0]  # a part, or a draft, is of a batch or a file
            key = keys.batch(owner) if owner.startswith("batch_") else keys.file(owner)
            if not await reachable(self._redis.exists(key)):
                await asyncio.to_thread(self.disk.drop_name, name)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    # Opened here: of a client that is gone before the first chunk, nothing stays open.
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk
