"""A page store in this process, which gives out what it has when the test says so."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

from engine.cache.host_page import HostPage
from engine.cache.page_store import PageFetch, StoreCosts

FREE = StoreCosts(0.0, 0.0)


class ShelfStore:
    """Implements `PageStore`; several engines may share one shelf."""

    def __init__(self, *, is_instant: bool = True, costs: StoreCosts | None = FREE) -> None:
        self.shelf: dict[bytes, bytes] = {}
        self.fetches: list[PageFetch] = []
        self.costs = costs
        self._is_instant = is_instant

    def fetch(self, digests: Seq[bytes], on_change: Callable[[], None]) -> PageFetch:
        fetch = PageFetch(digests, on_change)
        self.fetches.append(fetch)
        if self._is_instant:
            self.deliver(fetch)
        return fetch

    def deliver(self, fetch: PageFetch, most: int | None = None) -> None:
        """Hand over what is there of a fetch; with `most`, the rest never comes."""
        found = 0
        while found < len(fetch.digests) and fetch.digests[found] in self.shelf:
            found += 1
        fetch.found(found)
        for digest in fetch.digests[:found][:most]:
            fetch.add(self.shelf[digest])
        if most is None or most >= found:
            fetch.finish()

    def wants(self, digest: bytes) -> bool:
        return digest not in self.shelf

    def offer(self, digest: bytes, page: HostPage) -> None:
        self.shelf[digest] = bytes(page.view())

    def hold(self, is_held: bool) -> None:
        pass

    def get_stats(self) -> dict[str, Any]:
        return {"num_shelved_pages": len(self.shelf)}

    def reset_stats(self) -> None:
        pass
