"""The prefix cache: finds pages whose content a new sequence would compute again."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from hashlib import blake2b

from engine.base import BaseStats
from engine.cache.page_pool import PagePool


@dataclass
class PrefixCacheStats(BaseStats):
    num_queried_tokens: int = 0
    num_hit_tokens: int = 0
    num_forgotten_pages: int = 0


class PrefixCache:
    """Full pages by content, a chain of digests from the first token on.

    The digest of a page covers the salt and every token up to the page's end, so equal digests mean
    equal prefixes. The salt holds the tenant: nobody finds what another tenant has computed.
    """

    def __init__(self, pool: PagePool, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.stats = PrefixCacheStats()
        self._pool = pool
        self._page_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        pool.on_forget = self._forget

    def __len__(self) -> int:
        return len(self._page_of)

    def match(self, token_ids: Seq[int], salt: str) -> tuple[list[int], list[bytes]]:
        """Find and share the longest run of leading pages that is here.

        Always leaves at least one token over, because a sequence needs the logits of its last one.
        Returns page ids, each now held once more, and their digests.
        """
        pages: list[int] = []
        digests: list[bytes] = []
        if not self.enabled:
            return pages, digests
        size = self._pool.page_size
        digest = salt_digest(salt)
        for end in range(size, len(token_ids), size):
            digest = page_digest(digest, token_ids[end - size : end])
            page_id = self._page_of.get(digest)
            if page_id is None:
                break
            self._pool.share(page_id)
            pages.append(page_id)
            digests.append(digest)
        self.stats.num_queried_tokens += len(token_ids)
        self.stats.num_hit_tokens += len(pages) * size
        return pages, digests

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
        for index in range(len(digests), num_full):
            parent = digests[-1] if digests else salt_digest(salt)
            digest = page_digest(parent, token_ids[index * size : (index + 1) * size])
            digests.append(digest)
            if digest not in self._page_of:
                self._page_of[digest] = page_ids[index]
                self._digest_of[page_ids[index]] = digest
                self._pool.file(page_ids[index])

    def _forget(self, page_id: int) -> None:
        del self._page_of[self._digest_of.pop(page_id)]
        self.stats.num_forgotten_pages += 1


def salt_digest(salt: str) -> bytes:
    """The chain's first link."""
    return blake2b(salt.encode(), digest_size=16).digest()


def page_digest(parent: bytes, token_ids: Seq[int]) -> bytes:
    """The next link: parent digest and this page's tokens as 32-bit integers."""
    return blake2b(array("i", token_ids).tobytes(), key=parent, digest_size=16).digest()
