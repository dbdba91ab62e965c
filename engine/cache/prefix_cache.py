"""The prefix cache: finds pages whose content a new sequence would compute again."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from engine.base import BaseStats
from engine.cache.host_page import HostPage
from engine.cache.lower_floors import NO_PAGES, LowerFloors
from engine.cache.page_pool import OutOfPagesError, PagePool


@dataclass
class PrefixCacheStats(BaseStats):
    num_queried_tokens: int = 0
    num_hit_tokens: int = 0  # on any floor
    num_host_hit_tokens: int = 0
    num_external_hit_tokens: int = 0  # that a store outside had
    num_forgotten_pages: int = 0


class PrefixCache:
    """Full pages by content, a chain of digests from the first token on.

    The digest of a page covers the salt and every token up to the page's end, so equal digests mean
    equal prefixes. The salt holds the tenant: nobody finds what another tenant has computed.
    """

    def __init__(
        self, pool: PagePool, *, enabled: bool = True, floors: LowerFloors | None = None
    ) -> None:
        self.enabled = enabled
        self.floors = floors if enabled else None
        """Where pages may be that are not on the device; None: nowhere."""
        self.stats = PrefixCacheStats()
        self._pool = pool
        self._page_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        pool.on_forget = self._forget

    def __len__(self) -> int:
        return len(self._page_of)

    def match(
        self, token_ids: Seq[int], salt: str, arrived: Mapping[bytes, HostPage] = NO_PAGES
    ) -> tuple[list[int], list[bytes]]:
        """Find and share the longest run of leading pages that is here.

        Pages on lower floors, and those that have `arrived` from outside, are brought back to the
        device. Always leaves at least one token over, because a sequence needs the logits of its
        last one. Returns page ids, each now held once more, and their digests.
        """
        pages: list[int] = []
        digests: list[bytes] = []
        if not self.enabled:
            return pages, digests
        for digest in self._chain(token_ids, salt):
            page_id = self._page_of.get(digest)
            if page_id is None:
                break
            self._pool.share(page_id)
            pages.append(page_id)
            digests.append(digest)
        if self.floors is not None and (self.floors.are_open or arrived):
            rest = list(self._chain(token_ids, salt))[len(digests) :]
            brought = self._bring_back(rest, arrived)
            pages += brought
            digests += rest[: len(brought)]
        self.stats.num_queried_tokens += len(token_ids)
        self.stats.num_hit_tokens += len(pages) * self._pool.page_size
        return pages, digests

    def missing(self, token_ids: Seq[int], salt: str) -> list[bytes]:
        """Digests of the pages of a text from the first on that is not in this process."""
        if not self.enabled:
            return []
        chain = list(self._chain(token_ids, salt))
        for index, digest in enumerate(chain):
            in_host = self.floors is not None and self.floors.has(digest)
            if digest not in self._page_of and not in_host:
                return chain[index:]
        return []

    def insert(
        self,
        token_ids: Seq[int],
        page_ids: Seq[int],
        digests: list[bytes],
        num_full: int,
        salt: str,
    ) -> None:
        """File the pages that became full; `digests` holds those filed before, and is extended.

        Where an equal page is filed already, the new one stays private and is freed with its
        holder.
        """
        if not self.enabled:
            return
        size = self._pool.page_size
        first = len(digests)
        for index in range(first, num_full):
            parent = digests[-1] if digests else salt_digest(salt)
            digest = page_digest(parent, token_ids[index * size : (index + 1) * size])
            digests.append(digest)
            if digest not in self._page_of:
                self._file(digest, page_ids[index])
        if self.floors is not None:
            self.floors.offer(digests[first:], page_ids[first:num_full], len(token_ids))

    def get_stats(self) -> dict[str, Any]:
        """Counts of all floors; those that other servers have, under their names, too."""
        stats = self.stats
        common = {
            "prefix_cache_queries_total": stats.num_queried_tokens,
            "prefix_cache_hits_total": stats.num_hit_tokens - stats.num_external_hit_tokens,
            "external_prefix_cache_hits_total": stats.num_external_hit_tokens,
        }
        lower = {} if self.floors is None else self.floors.get_stats()
        return stats.to_dict() | common | lower

    def reset_stats(self) -> None:
        self.stats.reset()
        if self.floors is not None:
            self.floors.reset_stats()

    def _chain(self, token_ids: Seq[int], salt: str) -> Iterator[bytes]:
        """Digests of the full pages before the last token."""
        size, digest = self._pool.page_size, salt_digest(salt)
        for end in range(size, len(token_ids), size):
            digest = page_digest(digest, token_ids[end - size : end])
            yield digest

    def _bring_back(self, digests: Seq[bytes], arrived: Mapping[bytes, HostPage]) -> list[int]:
        """Put a leading run of these into pages of the device, as far as there are any."""
        assert self.floors is not None
        found = self.floors.find(digests, arrived)
        page_ids: list[int] = []
        try:
            for _ in found.pages:
                page_ids.append(self._pool.acquire())
        except OutOfPagesError:
            pass
        if page_ids:
            self.floors.bring_back(page_ids, found.pages[: len(page_ids)])
        for digest, page_id in zip(digests, page_ids, strict=False):
            self._file(digest, page_id)
        size, num_from_host = self._pool.page_size, min(found.num_from_host, len(page_ids))
        self.stats.num_host_hit_tokens += num_from_host * size
        self.stats.num_external_hit_tokens += (len(page_ids) - num_from_host) * size
        return page_ids

    def _file(self, digest: bytes, page_id: int) -> None:
        self._page_of[digest] = page_id
        self._digest_of[page_id] = digest
        self._pool.file(page_id)

    def _forget(self, page_id: int) -> None:
        digest = self._digest_of.pop(page_id)
        del self._page_of[digest]
        self.stats.num_forgotten_pages += 1
        if self.floors is not None:
            self.floors.forget(digest, page_id)


def salt_digest(salt: str) -> bytes:
    """The chain's first link."""
    return blake2b(salt.encode(), digest_size=16).digest()


def page_digest(parent: bytes, token_ids: Seq[int]) -> bytes:
    """The next link: parent digest and this page's tokens as 32-bit integers."""
    return blake2b(array("i", token_ids).tobytes(), key=parent, digest_size=16).digest()
