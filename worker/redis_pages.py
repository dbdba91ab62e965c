"""Pages in Redis: one round trip a batch of them, on a connection of their own."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from redis import Redis

from engine.base import BaseStats
from worker.page_seal import BrokenSealError, PageSeal
from worker.wire import keys, lua

READ_BYTES = 1 << 20
WRITE_BYTES = 1 << 18
"""Of a batch: Redis serves nobody else meanwhile, the queue neither. Small commands are also sent
at half the cost a byte: the client puts each together anew in memory of its own."""
MEMORY_SHARE = 0.5
"""Of maxmemory. Above it no page is written, and pages are thrown out: the rest is the queue's."""
PROBE_TTL_S = 10


@dataclass
class PageTraffic(BaseStats):
    """What this worker has moved; times and bytes of reads are those of pages that came."""

    num_store_round_trips: int = 0
    num_store_pages_read: int = 0
    num_store_pages_written: int = 0
    num_store_pages_refused: int = 0  # by Redis: the cap, or too little memory
    num_store_pages_dropped: int = 0  # by us: the outbox was full, or Redis away
    num_store_pages_broken: int = 0  # whose seal was not ours
    num_store_bytes_read: int = 0
    num_store_bytes_written: int = 0
    sum_store_read_s: float = 0.0
    sum_store_write_s: float = 0.0


class RedisPages:
    """Belongs to one thread; every method may raise RedisError."""

    def __init__(self, client: Redis, seal: PageSeal, *, cap_bytes: int, ttl_s: int) -> None:
        self.traffic = PageTraffic()
        self.seal = seal
        self._redis = client
        self._cap_bytes = cap_bytes
        self._ttl_s = ttl_s

    @property
    def read_batch(self) -> int:
        """Pages that are read in one round trip."""
        return max(1, READ_BYTES // self.seal.sealed_bytes)

    @property
    def write_batch(self) -> int:
        """Pages that are written in one round trip."""
        return max(1, WRITE_BYTES // self.seal.sealed_bytes)

    def find(self, digests: Sequence[bytes]) -> int:
        """How many leading pages are there; those found live on."""
        return int(self._call("find_pages", digests, page_bytes=self.seal.sealed_bytes))

    def read(self, digests: Sequence[bytes]) -> list[memoryview]:
        """One batch of pages, as far as they are there and whole."""
        started = time.perf_counter()
        self.traffic.num_store_round_trips += 1
        names = [keys.page(self.seal.namespace, digest) for digest in digests]
        pages: list[memoryview] = []
        for digest, sealed in zip(digests, self._redis.mget(names), strict=True):
            if not isinstance(sealed, bytes):  # thrown out since it was found
                break
            try:
                pages.append(self.seal.open(digest, sealed))
            except BrokenSealError:
                self.traffic.num_store_pages_broken += 1
                break
        self.traffic.num_store_pages_read += len(pages)
        self.traffic.num_store_bytes_read += len(pages) * self.seal.sealed_bytes
        self.traffic.sum_store_read_s += time.perf_counter() - started
        return pages

    def write(self, digests: Sequence[bytes], contents: Sequence[memoryview]) -> int:
        """One batch of pages; returns how many leading ones were kept."""
        started = time.perf_counter()
        sealed = [self.seal.seal(*pair) for pair in zip(digests, contents, strict=True)]
        num_written = self._put(digests, *sealed)
        self.traffic.num_store_pages_written += num_written
        self.traffic.num_store_pages_refused += len(sealed) - num_written
        self.traffic.num_store_bytes_written += num_written * self.seal.sealed_bytes
        self.traffic.sum_store_write_s += time.perf_counter() - started
        return num_written

    def trim(self) -> None:
        """Throw out what is above the cap, or stands in the queue's way."""
        self._put([])

    def probe(self) -> tuple[float, float]:
        """Seconds that a look and a page take now, by a batch of one page that says nothing."""
        digest = secrets.token_bytes(16)
        sealed = self.seal.seal(digest, memoryview(bytes(self.seal.page_bytes)))
        name = keys.page(self.seal.namespace, digest)
        self._redis.set(name, sealed, ex=PROBE_TTL_S)
        try:
            lookup_s = min(_seconds(lambda: self.find([digest] * 64)) for _ in range(2))
            batch = [digest] * self.read_batch
            page_s = min(_seconds(lambda: self.read(batch)) for _ in range(2)) / len(batch)
        finally:
            self._redis.delete(name)
        return lookup_s, page_s

    def close(self) -> None:
        """Give the connection back; the next call would make a new one."""
        self._redis.close()

    def _put(self, digests: Sequence[bytes], *sealed: bytes) -> int:
        arguments = {"cap": self._cap_bytes, "share": MEMORY_SHARE}
        return int(self._call("put_pages", digests, *sealed, **arguments))

    def _call(
        self, script: str, digests: Sequence[bytes], *contents: bytes, **arguments: object
    ) -> int:
        self.traffic.num_store_round_trips += 1
        common = {
            "namespace": self.seal.namespace,
            "digests": [digest.hex() for digest in digests],
            "ttl": self._ttl_s,
        }
        return int(lua.call(self._redis, script, {**common, **arguments}, *contents))


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
