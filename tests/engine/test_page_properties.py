"""Pages under any order of arrivals, growth, forks, aborts and pressure: none lost, none mixed up.

Each sequence does to pool and cache what the engine does for it; beside them the test keeps what
every page was last written with, and holds each hit against that. What is forgotten goes to host
memory, which is small as well, and comes back from there.
"""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import takewhile

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.cache.fetch_rule import FetchRule
from engine.cache.host_page import HostPage
from engine.cache.lower_floors import LowerFloors
from engine.cache.page_pool import OutOfPagesError, PagePool
from engine.cache.prefix_cache import PrefixCache

PAGE_SIZE = 2
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=7)
CHUNKS = st.sampled_from([1, 3, 99])  # tokens of one forward
SALTS = ("tenant a", "tenant b")


@dataclass(eq=False)
class Holder:
    """One sequence: its tokens, and the pages that it holds for them."""

    salt: str
    token_ids: list[int]
    pages: list[int]
    digests: list[bytes]
    num_computed: int = field(init=False)  # leading tokens that have KV

    def __post_init__(self) -> None:
        self.num_computed = len(self.pages) * PAGE_SIZE


@dataclass
class WrittenPages:
    """Stands for the device's memory: what a page was last written with."""

    written: dict[int, tuple[str, tuple[int, ...]]]
    page_bytes: int = 1

    def read(self, page_ids: Seq[int]) -> list[HostPage]:
        return [HostPage.of(repr(self.written[page]).encode()) for page in page_ids]

    def write(self, page_ids: Seq[int], pages: Seq[HostPage]) -> None:
        for page_id, page in zip(page_ids, pages, strict=True):
            self.written[page_id] = literal_eval(bytes(page.view()).decode())


class SharedPages(RuleBasedStateMachine):
    """Few pages and few different tokens, so that prefixes meet and memory runs out."""

    @initialize(num_pages=st.integers(2, 12), host_bytes=st.sampled_from([0, 100, 10_000]))
    def make(self, num_pages: int, host_bytes: int) -> None:
        self.pool = PagePool(num_pages + 1, PAGE_SIZE)
        self.holders: list[Holder] = []
        self.written: dict[int, tuple[str, tuple[int, ...]]] = {}
        """Of every page the salt and the whole prefix up to the last token written into it."""
        self.floors = LowerFloors(WrittenPages(self.written), FetchRule(1, 1.0), host_bytes)
        self.cache = PrefixCache(self.pool, floors=self.floors)

    @rule(prompt=TOKENS, salt=st.sampled_from(SALTS), count=CHUNKS)
    def add(self, prompt: list[int], salt: str, count: int) -> None:
        self._compute(self._start(prompt, salt), count)

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), more=st.just([]) | TOKENS, count=CHUNKS)
    def grow(self, data: st.DataObject, more: list[int], count: int) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        holder.token_ids += more
        self._compute(holder, count)

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), more=st.just([]) | TOKENS, count=CHUNKS)
    def fork(self, data: st.DataObject, more: list[int], count: int) -> None:
        """A second sequence with the same beginning shares the pages that the first has filed.

        One that it computed while an equal one was there already is its own, and may be missed.
        """
        first = data.draw(st.sampled_from(self.holders))
        second = self._start([*first.token_ids, *more], first.salt)
        most = (len(second.token_ids) - 1) // PAGE_SIZE
        shared = list(takewhile(self.pool._filed.__contains__, first.pages))[:most]
        assert second.pages[: len(shared)] == shared
        for own, other in zip(second.digests, first.digests, strict=False):
            assert own == other
        self._compute(second, count)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def end_or_abort(self, data: st.DataObject) -> None:
        self._let_go(data.draw(st.sampled_from(self.holders)))

    @rule(wanted=st.integers(1, 12))
    def evict(self, wanted: int) -> None:
        """Somebody takes all the memory there is for a moment: what is idle is forgotten."""
        num_available, num_filed = self.pool.num_available, len(self.cache)
        taken = [self.pool.acquire() for _ in range(min(wanted, num_available))]
        assert not set(taken) & {page for holder in self.holders for page in holder.pages}
        assert len(self.cache) <= num_filed
        for page in taken:
            self.written[page] = ("nobody", ())
            self.pool.release(page)
        assert self.pool.num_available == num_available

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def another_tenant_asks(self, data: st.DataObject) -> None:
        token_ids = data.draw(st.sampled_from(self.holders)).token_ids
        assert self.cache.match([*token_ids, 0], "tenant c") == ([], [])

    @invariant()
    def every_page_is_in_one_state_and_every_holder_is_counted(self) -> None:
        self.pool.check()
        held = [page for holder in self.holders for page in holder.pages]
        assert self.pool.num_held == len(set(held))
        for page in set(held):
            assert self.pool._holders[page] == held.count(page)

    @invariant()
    def a_page_holds_what_its_holders_think(self) -> None:
        for holder in self.holders:
            for index in range(-(-holder.num_computed // PAGE_SIZE)):
                end = min((index + 1) * PAGE_SIZE, holder.num_computed)
                expected = (holder.salt, tuple(holder.token_ids[:end]))
                assert self.written[holder.pages[index]] == expected

    @invariant()
    def what_is_filed_can_be_found_and_nothing_else(self) -> None:
        assert set(self.cache._page_of.values()) == self.pool._filed
        assert {page: d for d, page in self.cache._page_of.items()} == self.cache._digest_of

    def teardown(self) -> None:
        for holder in list(getattr(self, "holders", ())):
            self._let_go(holder)
        if hasattr(self, "pool"):
            assert self.pool.num_held == 0
            self.pool.check()

    def _start(self, token_ids: list[int], salt: str) -> Holder:
        holder = Holder(salt, list(token_ids), *self.cache.match(token_ids, salt))
        assert holder.num_computed < len(token_ids), "one token is left to compute"
        for index, page in enumerate(holder.pages):
            prefix = tuple(token_ids[: (index + 1) * PAGE_SIZE])
            assert self.written[page] == (salt, prefix), "a hit on something else"
        self.holders.append(holder)
        return holder

    def _compute(self, holder: Holder, count: int) -> None:
        """As a forward over the next tokens without KV; where memory is short the sequence ends."""
        end = min(holder.num_computed + count, len(holder.token_ids))
        try:
            while len(holder.pages) * PAGE_SIZE < end:
                holder.pages.append(self.pool.acquire())
        except OutOfPagesError:
            assert self.pool.num_available == 0
            self._let_go(holder)
            return
        first = holder.num_computed // PAGE_SIZE
        for index in range(first, len(holder.pages) if end > holder.num_computed else first):
            page = holder.pages[index]
            assert self.pool._holders[page] == 1, "writes into a shared page"
            assert page not in self.pool._filed, "writes into a page that others may find"
            prefix = holder.token_ids[: min((index + 1) * PAGE_SIZE, end)]
            self.written[page] = (holder.salt, tuple(prefix))
        holder.num_computed = end
        num_full = end // PAGE_SIZE
        self.cache.insert(holder.token_ids, holder.pages, holder.digests, num_full, holder.salt)

    def _let_go(self, holder: Holder) -> None:
        self.holders.remove(holder)
        for page in reversed(holder.pages):
            self.pool.release(page)


TestSharedPages = SharedPages.TestCase
TestSharedPages.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
