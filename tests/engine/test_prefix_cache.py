"""Prefixes that are shared: what may be found, what never, and no page lost on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from engine.cache.page_pool import PagePool
from engine.cache.prefix_cache import PrefixCache

PAGE_SIZE = 2
SALT = "tenant"


@dataclass
class Holder:
    """What a sequence does to pool and cache: match, grow, file, let go."""

    pool: PagePool
    cache: PrefixCache
    token_ids: list[int]
    salt: str = SALT
    pages: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    num_hit: int = 0

    def start(self) -> Holder:
        self.pages, self.digests = self.cache.match(self.token_ids, self.salt)
        self.num_hit = len(self.pages) * PAGE_SIZE
        return self

    def compute(self, num_tokens: int) -> Holder:
        """As after a forward over the tokens up to `num_tokens`; may raise `OutOfPagesError`."""
        while len(self.pages) * PAGE_SIZE < num_tokens:
            self.pages.append(self.pool.acquire())
        num_full = num_tokens // PAGE_SIZE
        self.cache.insert(self.token_ids, self.pages, self.digests, num_full, self.salt)
        return self

    def let_go(self) -> None:
        for page in reversed(self.pages):
            self.pool.release(page)
        self.pages, self.digests = [], []


@pytest.fixture
def pool() -> PagePool:
    return PagePool(9, PAGE_SIZE)


@pytest.fixture
def cache(pool: PagePool) -> PrefixCache:
    return PrefixCache(pool)


def filed(pool: PagePool, cache: PrefixCache, token_ids: list[int], salt: str = SALT) -> list[int]:
    """Compute a prompt, let it go, and return the pages it was in."""
    holder = Holder(pool, cache, token_ids, salt).start().compute(len(token_ids))
    pages = list(holder.pages)
    holder.let_go()
    return pages


def test_an_equal_prefix_is_found_page_by_page(pool: PagePool, cache: PrefixCache) -> None:
    pages = filed(pool, cache, [1, 2, 3, 4, 5])
    assert cache.match([1, 2, 3, 4, 9, 9], SALT)[0] == pages[:2]
    assert cache.match([1, 2, 9, 9, 9], SALT)[0] == pages[:1]
    assert cache.match([9, 2, 3, 4, 5], SALT)[0] == []


def test_the_same_page_behind_another_prefix_is_not_found(
    pool: PagePool, cache: PrefixCache
) -> None:
    filed(pool, cache, [1, 2, 3, 4])
    assert cache.match([3, 4, 3, 4, 5], SALT)[0] == []


def test_a_hit_always_leaves_one_token_to_compute(pool: PagePool, cache: PrefixCache) -> None:
    filed(pool, cache, [1, 2, 3, 4])
    assert len(cache.match([1, 2, 3, 4], SALT)[0]) == 1
    assert len(cache.match([1, 2, 3, 4, 5], SALT)[0]) == 2


def test_another_tenant_never_hits(pool: PagePool, cache: PrefixCache) -> None:
    filed(pool, cache, [1, 2, 3, 4], "a")
    assert cache.match([1, 2, 3, 4, 5], "b")[0] == []
    assert cache.match([1, 2, 3, 4, 5], "")[0] == []
    assert len(cache.match([1, 2, 3, 4, 5], "a")[0]) == 2


def test_a_half_full_page_is_not_shared(pool: PagePool, cache: PrefixCache) -> None:
    filed(pool, cache, [1, 2, 3])
    assert len(cache.match([1, 2, 3, 4, 5], SALT)[0]) == 1


def test_two_that_compute_the_same_at_once_do_not_disturb_each_other(
    pool: PagePool, cache: PrefixCache
) -> None:
    first = Holder(pool, cache, [1, 2, 3, 4]).start()
    second = Holder(pool, cache, [1, 2, 3, 4]).start()
    first.compute(4)
    second.compute(4)
    assert not set(first.pages) & set(second.pages)
    second.let_go()
    assert cache.match([1, 2, 3, 4, 5], SALT)[0] == first.pages
    pool.check()


def test_a_forgotten_page_is_not_found_and_is_counted(pool: PagePool, cache: PrefixCache) -> None:
    filed(pool, cache, [1, 2, 3, 4])
    taken = [pool.acquire() for _ in range(8)]
    assert len(set(taken)) == 8
    assert cache.match([1, 2, 3, 4, 5], SALT)[0] == []
    assert (len(cache), cache.stats.num_forgotten_pages) == (0, 2)


def test_of_a_prefix_the_end_is_forgotten_before_the_beginning(
    pool: PagePool, cache: PrefixCache
) -> None:
    pages = filed(pool, cache, [1, 2, 3, 4, 5, 6])
    for _ in range(6):
        pool.acquire()  # five are free, so one filed page goes
    assert cache.match([1, 2, 3, 4, 5, 6, 7], SALT)[0] == pages[:2]


def test_a_disabled_cache_keeps_nothing(pool: PagePool) -> None:
    cache = PrefixCache(pool, enabled=False)
    filed(pool, cache, [1, 2, 3, 4])
    assert cache.match([1, 2, 3, 4, 5], SALT) == ([], [])
    assert cache.stats.num_queried_tokens == 0
    assert pool.num_available == 8


def test_hits_are_counted_in_tokens(pool: PagePool, cache: PrefixCache) -> None:
    filed(pool, cache, [1, 2, 3, 4])
    cache.match([1, 2, 3, 4, 5], SALT)
    assert (cache.stats.num_queried_tokens, cache.stats.num_hit_tokens) == (9, 4)
