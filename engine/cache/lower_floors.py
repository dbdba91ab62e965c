"""Below the pages on the device: a host store of forgotten ones, and a store outside."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any, NamedTuple

from engine.base import BaseCache
from engine.cache.fetch_rule import FetchRule
from engine.cache.host_page import HostPage
from engine.cache.page_store import PageMemory, PageStore

NO_PAGES: Mapping[bytes, HostPage] = {}


class Found(NamedTuple):
    """A leading run of pages that are not on the device."""

    pages: list[HostPage]
    num_from_host: int


class LowerFloors:
    """Floor 2 keeps what the device forgets; floor 3 is offered what the device has computed."""

    def __init__(self, memory: PageMemory, rule: FetchRule, host_bytes: int = 0) -> None:
        self.rule = rule
        self.store: PageStore | None = None
        self._memory = memory
        self._host: BaseCache[bytes, HostPage] = BaseCache(host_bytes, lambda page: page.nbytes)

    @property
    def page_bytes(self) -> int:
        return self._memory.page_bytes

    @property
    def are_open(self) -> bool:
        """Whether a page can be anywhere but on the device."""
        return self._host.capacity > 0 or self.store is not None

    def forget(self, digest: bytes, page_id: int) -> None:
        """The device is about to lose a page."""
        if self._host.capacity >= self._memory.page_bytes:
            self._host.put(digest, self._memory.read([page_id])[0])

    def has(self, digest: bytes) -> bool:
        """Whether a page is in host memory."""
        return digest in self._host

    def find(self, digests: Seq[bytes], arrived: Mapping[bytes, HostPage] = NO_PAGES) -> Found:
        """The longest run of leading pages in host memory or among those that have arrived."""
        pages: list[HostPage] = []
        num_from_host = 0
        for digest in digests:
            page = self._host.get(digest) if digest in self._host else None
            num_from_host += page is not None
            page = page or arrived.get(digest)
            if page is None:
                break
            pages.append(page)
        return Found(pages, num_from_host)

    def bring_back(self, page_ids: Seq[int], pages: Seq[HostPage]) -> None:
        """Fill pages of the device."""
        self._memory.write(page_ids, pages)

    def offer(self, digests: Seq[bytes], page_ids: Seq[int], num_tokens: int) -> None:
        """Hand pages of a text of `num_tokens` to the store, where anybody would fetch them."""
        store = self.store
        if store is None or not self.rule.is_worth_looking(num_tokens, store.costs):
            return
        pairs = zip(digests, page_ids, strict=True)
        wanted = [(digest, page_id) for digest, page_id in pairs if store.wants(digest)]
        if wanted:
            pages = self._memory.read([page_id for _, page_id in wanted])
            for (digest, _), page in zip(wanted, pages, strict=True):
                store.offer(digest, page)

    def reset_stats(self) -> None:
        self._host.stats.reset()
        if self.store is not None:
            self.store.reset_stats()

    def get_stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = {
            "num_host_pages": len(self._host),
            "num_host_bytes": self._host.total_cost,
            "num_host_evictions": self._host.stats.num_evictions,
        }
        return stats if self.store is None else stats | self.store.get_stats()
