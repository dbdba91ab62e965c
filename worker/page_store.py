"""The prefix cache's store in Redis: a thread that fetches, and writes behind the engine's back."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import RedisError

from engine.base import BaseCache
from engine.cache.host_page import HostPage
from engine.cache.page_store import PageFetch, StoreCosts
from worker.redis_pages import RedisPages

log = logging.getLogger("worker.pages")

OUTBOX_BYTES = 64 << 20
"""Of pages on their way out: what is computed faster than it can be written is dropped."""
NUM_KNOWN = 100_000
"""Pages that are remembered as being there, so that they are not written again."""
KNOWN_FOR_S = 300.0
WRITE_SHARE = 0.2
"""Of the time, that writing may take: it needs a processor here and one at Redis, and forwards on
a CPU lose more than that share where they have to wait for theirs."""
HOLD_S = 1.0
"""How long written pages wait at most while prompts are read."""
CHORE_S = 5.0
PROBE_S = 10.0
RETRY_S = 1.0
STUCK_S = 0.25
"""A call that takes longer says that the store is away, long before its timeout does."""
MEMORY = 0.7
"""Weight of what was known of the costs at each new measurement."""
MAX_STEP = 3.0
"""How many times as slow as known a measurement may count: one hiccup says little."""


class RedisPageStore(threading.Thread):
    """Implements `PageStore`. The engine's thread takes a lock for a moment, and never waits."""

    def __init__(self, pages: RedisPages) -> None:
        super().__init__(name="pages", daemon=True)
        self._pages = pages
        self._changed = threading.Condition()
        self._fetches: deque[PageFetch] = deque()
        self._outbox: deque[tuple[bytes, HostPage]] = deque()
        self._outbox_bytes = 0
        self._held_until = 0.0
        self._write_at = 0.0
        self._known: BaseCache[bytes, float] = BaseCache(NUM_KNOWN)
        self._costs: StoreCosts | None = None
        self._is_stopping = False
        self._busy_since: float | None = None
        self._retry_at = 0.0
        self._probe_at = 0.0
        self._chore_at = 0.0
        self._last_trouble = ""

    @property
    def costs(self) -> StoreCosts | None:
        busy_since = self._busy_since
        is_stuck = busy_since is not None and time.monotonic() - busy_since > STUCK_S
        return None if is_stuck else self._costs

    def fetch(self, digests: Sequence[bytes], on_change: Callable[[], None]) -> PageFetch:
        fetch = PageFetch(digests, on_change)
        with self._changed:
            self._fetches.append(fetch)
            self._changed.notify()
        return fetch

    def wants(self, digest: bytes) -> bool:
        if self._costs is None:
            return False
        with self._changed:
            known_at = self._known.get(digest)
            is_new = known_at is None or time.monotonic() - known_at > KNOWN_FOR_S
            has_room = self._outbox_bytes < OUTBOX_BYTES
            if is_new and not has_room:
                self._pages.traffic.num_store_pages_dropped += 1
            return is_new and has_room

    def offer(self, digest: bytes, page: HostPage) -> None:
        with self._changed:
            self._known.put(digest, time.monotonic())
            self._outbox.append((digest, page))
            self._outbox_bytes += page.nbytes
            self._changed.notify()

    def hold(self, is_held: bool) -> None:
        was_held = self._held_until > 0
        if is_held == was_held:
            return
        with self._changed:
            self._held_until = time.monotonic() + HOLD_S if is_held else 0.0
            self._changed.notify()

    def get_stats(self) -> dict[str, Any]:
        costs = self._costs
        return self._pages.traffic.to_dict() | {
            "store_is_up": float(costs is not None),
            "store_lookup_s": 0.0 if costs is None else costs.lookup_s,
            "store_page_s": 0.0 if costs is None else costs.page_s,
            "num_store_bytes_waiting": self._outbox_bytes,
        }

    def reset_stats(self) -> None:
        self._pages.traffic.reset()

    def stop(self, timeout_s: float) -> None:
        """Write nothing more, and end after the call that is under way."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self.join(timeout_s)

    def run(self) -> None:
        while self._wait_for_work():
            if time.monotonic() < self._retry_at:
                self._refuse()
                continue
            self._busy_since = time.monotonic()
            try:
                self._work()
            except RedisError as error:
                self._give_up(error)
            self._busy_since = None
        self._refuse()
        self._pages.close()

    def _wait_for_work(self) -> bool:
        with self._changed:
            is_down = self._costs is None
            wake_at = self._retry_at if is_down else min(self._chore_at, self._probe_at)
            if self._outbox:
                wake_at = min(wake_at, max(self._held_until, self._write_at))
            patience_s = max(0.0, wake_at - time.monotonic())
            self._changed.wait_for(self._has_reason_to_wake, patience_s)
            return not self._is_stopping

    def _has_reason_to_wake(self) -> bool:
        return self._is_stopping or bool(self._fetches) or self._may_write

    @property
    def _may_write(self) -> bool:
        return bool(self._outbox) and time.monotonic() >= max(self._held_until, self._write_at)

    def _work(self) -> None:
        """One thing at a time, what somebody waits for first."""
        if self._costs is None:
            self._probe()
        if self._fetches:
            self._fetch(self._fetches.popleft())
        elif self._may_write:
            self._write()
        else:
            self._do_chores()

    def _fetch(self, fetch: PageFetch) -> None:
        try:
            num_found = 0 if fetch.is_cancelled else self._pages.find(fetch.digests)
            self._learn(lookup_s=time.monotonic() - fetch.began)
            fetch.found(num_found)
            self._note_known(fetch.digests[:num_found])
            size = self._pages.read_batch
            for first in range(0, num_found, size):
                batch = fetch.digests[first : min(first + size, num_found)]
                if fetch.is_cancelled or not self._read(fetch, batch):
                    break
        finally:
            fetch.finish()

    def _read(self, fetch: PageFetch, batch: Sequence[bytes]) -> bool:
        """Read the next pages of a fetch; False where one is missing or broken."""
        started = time.monotonic()
        contents = self._pages.read(batch)
        for content in contents:
            fetch.add(content)
        if contents:
            self._learn(page_s=(time.monotonic() - started) / len(contents))
        self._forget(batch[len(contents) :])
        return len(contents) == len(batch)

    def _write(self) -> None:
        with self._changed:
            count = min(len(self._outbox), self._pages.write_batch)
            batch = [self._outbox.popleft() for _ in range(count)]
            self._outbox_bytes -= sum(page.nbytes for _, page in batch)
        digests = [digest for digest, _ in batch]
        num_written, started = 0, time.monotonic()
        try:
            num_written = self._pages.write(digests, [page.view() for _, page in batch])
        finally:
            self._forget(digests[num_written:])
            now = time.monotonic()
            self._write_at = now + (now - started) * (1 / WRITE_SHARE - 1)

    def _do_chores(self) -> None:
        now = time.monotonic()
        if now >= self._probe_at:
            self._probe()
        if now >= self._chore_at:
            self._pages.trim()
            self._chore_at = now + CHORE_S

    def _probe(self) -> None:
        self._costs = StoreCosts(*self._pages.probe())
        self._probe_at = time.monotonic() + PROBE_S
        if self._last_trouble:
            self._last_trouble = ""
            log.info("the shared prefix cache is back")

    def _learn(self, lookup_s: float | None = None, page_s: float | None = None) -> None:
        """Take a measurement from real work."""
        costs = self._costs
        assert costs is not None
        if lookup_s is not None:
            costs = costs._replace(lookup_s=_mixed(costs.lookup_s, lookup_s))
        if page_s is not None:
            costs = costs._replace(page_s=_mixed(costs.page_s, page_s))
        self._costs = costs

    def _note_known(self, digests: Sequence[bytes]) -> None:
        with self._changed:
            for digest in digests:
                self._known.put(digest, time.monotonic())

    def _forget(self, digests: Sequence[bytes]) -> None:
        """Of these it is not certain that they are there."""
        with self._changed:
            for digest in digests:
                self._known.discard(digest)

    def _give_up(self, error: RedisError) -> None:
        self._costs = None
        self._retry_at = time.monotonic() + RETRY_S
        if str(error) != self._last_trouble:
            self._last_trouble = str(error)
            log.warning("the shared prefix cache is away, prefixes are computed: %s", error)
        self._refuse()

    def _refuse(self) -> None:
        """Let nobody wait for a store that is away, and keep nothing for it."""
        while self._fetches:
            self._fetches.popleft().finish()
        with self._changed:
            self._pages.traffic.num_store_pages_dropped += len(self._outbox)
            for digest, _ in self._outbox:
                self._known.discard(digest)
            self._outbox.clear()
            self._outbox_bytes = 0


def _mixed(known: float, measured: float) -> float:
    return MEMORY * known + (1 - MEMORY) * min(measured, MAX_STEP * known)
