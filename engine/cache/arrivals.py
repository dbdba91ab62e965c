"""Sequences that wait, before they are scheduled, for pages which a store has of their prefix."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.base import BaseStats
from engine.cache.host_page import HostPage
from engine.cache.page_store import PageFetch
from engine.cache.prefix_cache import PrefixCache
from engine.request.sequence import Sequence

MAX_NAP_S = 0.002
"""How long an engine that has nothing else to do is deaf to new sequences."""

MIN_ROWS = 64
MIN_SHARE = 8
"""Rows of prompts in a step that tells what they cost: in all, and for each that decodes."""


@dataclass
class ArrivalStats(BaseStats):
    num_external_queried_tokens: int = 0  # that a store was asked for
    num_fetches: int = 0
    num_fetches_given_up: int = 0  # computed instead, because that was sooner
    sum_fetch_wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Arrival:
    sequence: Sequence
    fetch: PageFetch  # which several sequences of one prefix share
    began: float


class Arrivals:
    """Belongs to the engine's thread; a store's own thread only fills in the fetches."""

    def __init__(self, cache: PrefixCache) -> None:
        self.stats = ArrivalStats()
        self._cache = cache
        self._waiting: list[_Arrival] = []
        self._arrived: dict[str, Mapping[bytes, HostPage]] = {}
        self._bell = threading.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def get_stats(self) -> dict[str, Any]:
        asked = {"external_prefix_cache_queries_total": self.stats.num_external_queried_tokens}
        return self.stats.to_dict() | asked

    def expect(self, sequence: Sequence) -> bool:
        """Have the store look for what is missing of a prefix; False: nothing to wait for."""
        floors = self._cache.floors
        if floors is None or floors.store is None:
            return False
        digests = self._cache.missing(sequence.token_ids, sequence.cache_salt)
        num_tokens = len(digests) * floors.rule.page_size
        if not floors.rule.is_worth_looking(num_tokens, floors.store.costs):
            return False
        fetch = self._under_way(digests[0])
        if fetch is None:
            self.stats.num_fetches += 1
            self.stats.num_external_queried_tokens += num_tokens
            fetch = floors.store.fetch(digests, self._bell.set)
        self._waiting.append(_Arrival(sequence, fetch, time.monotonic()))
        return True

    def take(self) -> list[Sequence]:
        """Those that need not wait any longer, first come first."""
        if not self._waiting:
            return []
        now = time.monotonic()
        ready = [item for item in self._waiting if self._is_over(item, now)]
        self._waiting = [item for item in self._waiting if item not in ready]
        for item in ready:
            self._settle(item, now)
        return [item.sequence for item in ready]

    def pages_of(self, sequence: Sequence) -> Mapping[bytes, HostPage]:
        """What has come for a sequence, which is forgotten here."""
        return self._arrived.pop(sequence.sequence_id, {})

    def discard(self, sequence_id: str) -> None:
        """Forget a sequence that was aborted."""
        gone = [item for item in self._waiting if item.sequence.sequence_id == sequence_id]
        self._waiting = [item for item in self._waiting if item not in gone]
        for item in gone:
            self._cancel_unless_shared(item.fetch)
        self._arrived.pop(sequence_id, None)

    def nap(self) -> None:
        """Where nothing can run: until a fetch ends, but never long."""
        if self._waiting:
            self._bell.wait(MAX_NAP_S)
            self._bell.clear()

    def begin_step(self, num_prefill_rows: int) -> None:
        """Keep the store's thread from the processor while prompts are read."""
        floors = self._cache.floors
        if floors is not None and floors.store is not None:
            floors.store.hold(num_prefill_rows > 0)

    def note_step(self, num_prefill_rows: int, num_decoding: int, seconds: float) -> None:
        """Learn what reading a prompt costs from steps that do little else."""
        floors = self._cache.floors
        if floors is not None and num_prefill_rows >= max(MIN_ROWS, MIN_SHARE * num_decoding):
            floors.rule.note_prefill(num_prefill_rows, seconds)

    def _under_way(self, digest: bytes) -> PageFetch | None:
        """A fetch that begins at the same page."""
        fetches = (item.fetch for item in self._waiting)
        return next((fetch for fetch in fetches if fetch.digests[0] == digest), None)

    def _is_over(self, item: _Arrival, now: float) -> bool:
        floors, fetch = self._cache.floors, item.fetch
        assert floors is not None
        patience_s = floors.rule.patience_s(len(fetch.digests), fetch.num_found)
        return fetch.is_done or now - item.began > patience_s

    def _settle(self, item: _Arrival, now: float) -> None:
        fetch = item.fetch
        self.stats.sum_fetch_wait_s += now - item.began
        if not fetch.is_done:
            self.stats.num_fetches_given_up += 1
            self._cancel_unless_shared(fetch)
        pages = list(fetch.pages)  # more may be coming
        self._arrived[item.sequence.sequence_id] = dict(zip(fetch.digests, pages, strict=False))

    def _cancel_unless_shared(self, fetch: PageFetch) -> None:
        if all(item.fetch is not fetch for item in self._waiting):
            fetch.is_cancelled = True
