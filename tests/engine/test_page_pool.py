"""Pages: each is free, held or idle, and never two of these."""

from __future__ import annotations

import pytest

from engine.cache.page_pool import OutOfPagesError, PagePool


def test_page_zero_is_never_handed_out() -> None:
    pool = PagePool(5, 4)
    assert sorted(pool.acquire() for _ in range(4)) == [1, 2, 3, 4]
    with pytest.raises(OutOfPagesError, match="all 4 pages"):
        pool.acquire()


def test_a_released_page_is_free_again() -> None:
    pool = PagePool(2, 4)
    page = pool.acquire()
    pool.release(page)
    assert (pool.num_available, pool.num_held) == (1, 0)
    assert pool.acquire() == page


def test_a_shared_page_is_free_only_after_its_last_holder() -> None:
    pool = PagePool(3, 4)
    page = pool.acquire()
    pool.share(page)
    pool.release(page)
    assert pool.num_held == 1
    pool.check()
    pool.release(page)
    assert pool.num_held == 0
    pool.check()


def test_releasing_a_page_that_nobody_holds_is_our_own_mistake() -> None:
    pool = PagePool(3, 4)
    with pytest.raises(AssertionError, match="held by nobody"):
        pool.release(1)


def test_filed_pages_stay_until_memory_is_needed_and_the_longest_idle_goes_first() -> None:
    pool = PagePool(4, 4)
    forgotten: list[int] = []
    pool.on_forget = forgotten.append
    first, second, third = (pool.acquire() for _ in range(3))
    for page in (second, first):
        pool.file(page)
        pool.release(page)
    pool.release(third)
    assert pool.acquire() == third, "a free page goes before a filed one"
    assert forgotten == []
    assert pool.acquire() == second
    assert forgotten == [second]
    pool.check()


def test_an_idle_page_that_is_shared_cannot_be_taken_away() -> None:
    pool = PagePool(2, 4)
    page = pool.acquire()
    pool.file(page)
    pool.release(page)
    pool.share(page)
    with pytest.raises(OutOfPagesError):
        pool.acquire()
    pool.check()


def test_a_page_with_a_new_content_is_not_filed_any_more() -> None:
    pool = PagePool(2, 4)
    page = pool.acquire()
    pool.file(page)
    pool.release(page)
    assert pool.acquire() == page
    pool.release(page)
    assert pool.num_available == 1
    forgotten: list[int] = []
    pool.on_forget = forgotten.append
    pool.acquire()
    assert forgotten == [], "nothing was filed under the second content"


def test_the_check_sees_a_lost_page() -> None:
    pool = PagePool(3, 4)
    pool._free.pop()
    with pytest.raises(AssertionError, match="lost"):
        pool.check()
