"""What the prefix cache asks of those below it: the device's pages, and a store outside."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any, NamedTuple, Protocol

from engine.cache.host_page import HostPage


class PageMemory(Protocol):
    """The device's memory behind the pages."""

    @property
    def page_bytes(self) -> int: ...

    def read(self, page_ids: Seq[int]) -> list[HostPage]:
        """Copies of pages; those may be overwritten as soon as this has returned."""
        ...

    def write(self, page_ids: Seq[int], pages: Seq[HostPage]) -> None:
        """Fill pages; every forward that is begun afterwards reads the new content."""
        ...


class StoreCosts(NamedTuple):
    """What a store takes, in seconds, as measured lately."""

    lookup_s: float
    page_s: float


class PageFetch:
    """A run of pages on its way: the store's thread fills it in, the engine's looks at it.

    Pages come in the order of their digests, so what is there is always a usable beginning.
    """

    def __init__(self, digests: Seq[bytes], on_change: Callable[[], None]) -> None:
        self.digests = tuple(digests)
        self.began = time.monotonic()
        self.pages: list[HostPage] = []
        self.num_found: int | None = None
        """How many leading pages the store has; None until it has looked."""
        self.is_done = False
        self.is_cancelled = False
        """Set by the engine: nobody waits any more."""
        self._on_change = on_change

    def found(self, num_pages: int) -> None:
        self.num_found = num_pages

    def add(self, content: bytes | memoryview) -> None:
        self.pages.append(HostPage.of(content))

    def finish(self) -> None:
        self.is_done = True
        self._on_change()


class PageStore(Protocol):
    """Pages outside the process, by the digest of the whole prefix that they end.

    No method waits: another thread does the work. What cannot be had is not there, and what cannot
    be kept is dropped. `offer` and `fetch` belong to the engine's thread.
    """

    @property
    def costs(self) -> StoreCosts | None:
        """None while the store does not answer, or is not known yet."""
        ...

    def fetch(self, digests: Seq[bytes], on_change: Callable[[], None]) -> PageFetch:
        """Begin to fetch the longest leading run that is there."""
        ...

    def wants(self, digest: bytes) -> bool:
        """Whether it is worth copying this page for `offer`: it is new, and there is room."""
        ...

    def offer(self, digest: bytes, page: HostPage) -> None: ...

    def hold(self, is_held: bool) -> None:
        """Whether somebody waits for his first token: what was offered had better wait, too."""
        ...

    def get_stats(self) -> dict[str, Any]: ...

    def reset_stats(self) -> None: ...
