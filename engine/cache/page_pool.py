"""Bookkeeping of KV pages: who holds a page, which are free, which may be forgotten."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable


class OutOfPagesError(RuntimeError):
    """Every page is held by a running sequence."""


class PagePool:
    """Hands out page ids and counts their holders.

    A page without a holder is free, unless the prefix cache has filed it: then it stays readable
    until its memory is needed, the least recently released page first. Page 0 is never handed out:
    padded rows read and write it.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.on_forget: Callable[[int], None] = lambda page_id: None
        """Called when a filed page loses its content to a new holder."""
        self._holders = [0] * num_pages
        self._free = list(range(num_pages - 1, 0, -1))
        self._filed: set[int] = set()
        self._idle: OrderedDict[int, None] = OrderedDict()  # filed pages without a holder

    @property
    def num_available(self) -> int:
        return len(self._free) + len(self._idle)

    @property
    def num_held(self) -> int:
        return self.num_pages - 1 - self.num_available

    def acquire(self) -> int:
        """Take a page whose content is nobody's; raise `OutOfPagesError` where there is none."""
        if self._free:
            page_id = self._free.pop()
        elif self._idle:
            page_id, _ = self._idle.popitem(last=False)
            self._filed.discard(page_id)
            self.on_forget(page_id)
        else:
            raise OutOfPagesError(f"all {self.num_pages - 1} pages are in use")
        self._holders[page_id] = 1
        return page_id

    def share(self, page_id: int) -> None:
        """Become one more holder of a page with content."""
        self._idle.pop(page_id, None)
        self._holders[page_id] += 1

    def release(self, page_id: int) -> None:
        """Stop holding a page."""
        assert self._holders[page_id] > 0, f"page {page_id} is held by nobody"
        self._holders[page_id] -= 1
        if self._holders[page_id]:
            return
        if page_id in self._filed:
            self._idle[page_id] = None
        else:
            self._free.append(page_id)

    def file(self, page_id: int) -> None:
        """Keep the content after the last holder has gone, for as long as memory allows."""
        self._filed.add(page_id)

    def check(self) -> None:
        """Assert that every page is in exactly one state (for tests and idle moments)."""
        held = {page_id for page_id, holders in enumerate(self._holders) if holders}
        free, idle = set(self._free), set(self._idle)
        assert len(self._free) == len(free), "a page is free twice"
        assert not (held & free or held & idle or free & idle), "a page is in two states"
        assert held | free | idle == set(range(1, self.num_pages)), "a page is lost"
        assert idle <= self._filed, "an idle page is not filed"
