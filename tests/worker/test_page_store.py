"""The store's thread: it fetches before it writes, drops what it cannot keep, and never blocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from engine.cache.host_page import HostPage
from engine.cache.page_store import PageFetch
from tests.valkey import Valkey
from tests.worker.test_redis_pages import PAGE_BYTES, content, digests, pages_of
from worker import page_store
from worker.page_store import RedisPageStore
from worker.redis_pages import RedisPages
from worker.shared_prefixes import connect
from worker.wire import keys

WAIT_S = 20.0


@pytest.fixture
def pages(redis_client: redis.Redis) -> RedisPages:
    return pages_of(redis_client)


@pytest.fixture
def store(pages: RedisPages) -> Iterator[RedisPageStore]:
    store = RedisPageStore(pages)
    store.start()
    wait_for(lambda: store.costs is not None)
    yield store
    store.stop(WAIT_S)
    assert not store.is_alive()


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def offer(store: RedisPageStore, *numbers: int) -> None:
    for number, digest in zip(numbers, digests(*numbers), strict=True):
        store.offer(digest, HostPage.of(content(number)))


def fetched(store: RedisPageStore, *numbers: int) -> PageFetch:
    """A fetch that has ended."""
    bell = threading.Event()
    fetch = store.fetch(digests(*numbers), bell.set)
    assert bell.wait(WAIT_S)
    assert fetch.is_done
    return fetch


def written(store: RedisPageStore, count: int) -> None:
    wait_for(lambda: store.get_stats()["num_store_pages_written"] == count)


def test_what_is_offered_is_written_behind_the_engines_back_and_fetched(
    store: RedisPageStore, valkey: Valkey
) -> None:
    offer(store, 1, 2, 3)
    written(store, 3)
    other = RedisPageStore(pages_of(valkey.connect()))
    other.start()
    fetch = fetched(other, 1, 2, 3, 4)
    assert fetch.num_found == 3
    assert [page.view() for page in fetch.pages] == [content(1), content(2), content(3)]
    assert not other.wants(digests(3)[0])  # it is there, as it has seen
    assert other.wants(digests(4)[0])
    other.stop(WAIT_S)


def test_a_broken_page_ends_a_fetch_and_is_wanted_anew(
    store: RedisPageStore, pages: RedisPages, redis_client: redis.Redis
) -> None:
    offer(store, 1, 2, 3)
    written(store, 3)
    redis_client.set(keys.page(pages.seal.namespace, digests(2)[0]), b"x" * PAGE_BYTES, ex=60)
    fetch = fetched(store, 1, 2, 3)
    assert (fetch.num_found, len(fetch.pages)) == (3, 1)
    assert store.wants(digests(2)[0])
    offer(store, 2)
    written(store, 4)
    assert len(fetched(store, 1, 2, 3).pages) == 3


def test_a_page_that_redis_did_not_keep_is_wanted_anew(redis_client: redis.Redis) -> None:
    store = RedisPageStore(pages_of(redis_client, cap=10))
    store.start()
    wait_for(lambda: store.costs is not None)
    offer(store, 1)
    assert not store.wants(digests(1)[0])
    wait_for(lambda: store.get_stats()["num_store_pages_refused"] == 1)
    wait_for(lambda: store.wants(digests(1)[0]))
    store.stop(WAIT_S)


def test_a_full_outbox_wants_nothing_more(
    pages: RedisPages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_store, "OUTBOX_BYTES", 2 * PAGE_BYTES)
    store = RedisPageStore(pages)
    store._costs = page_store.StoreCosts(0.0, 0.0)  # it is not running
    offer(store, 1, 2)
    assert not store.wants(digests(3)[0])
    assert store.get_stats()["num_store_pages_dropped"] == 1


def test_what_was_offered_waits_while_prompts_are_read_but_not_forever(
    store: RedisPageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_store, "HOLD_S", 1000.0)
    store.hold(True)
    offer(store, 1, 2)
    assert fetched(store, 1).pages == []  # others are served meanwhile
    assert store.get_stats()["num_store_bytes_waiting"] == 2 * PAGE_BYTES
    store.hold(False)
    written(store, 2)
    monkeypatch.setattr(page_store, "HOLD_S", 0.01)
    store.hold(True)
    offer(store, 3)
    written(store, 3)


def test_after_a_write_the_thread_leaves_the_processor_to_others(
    pages: RedisPages, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisPageStore(pages)  # it is not running
    offer(store, *range(250), *range(250))
    assert store._may_write
    write = pages.write
    monkeypatch.setattr(pages, "write", lambda *args: [time.sleep(0.2), write(*args)][1])
    store._write()
    assert store._outbox
    assert not store._may_write  # for 0.8 s


def test_a_cancelled_fetch_is_not_begun(store: RedisPageStore, pages: RedisPages) -> None:
    offer(store, 1)
    written(store, 1)
    with store._changed:  # so that the thread does not see it before it is cancelled
        fetch = store.fetch(digests(1), lambda: None)
        fetch.is_cancelled = True
    wait_for(lambda: fetch.is_done)
    assert fetch.pages == []
    assert pages.traffic.num_store_pages_read == 2 * pages.read_batch  # the probe's own


def test_redis_gone_in_mid_fetch_leaves_what_has_come_and_comes_back(
    own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.redis_pages.READ_BYTES", 2 * PAGE_BYTES + 100)
    monkeypatch.setattr(page_store, "RETRY_S", 0.05)
    pages = pages_of(connect(own_valkey.url))
    store = RedisPageStore(pages)
    store.start()
    wait_for(lambda: store.costs is not None)
    offer(store, *range(10))
    written(store, 10)
    read = pages.read

    def read_and_lose(batch: list[bytes]) -> list[memoryview]:
        found = read(batch)
        own_valkey.kill()
        return found

    monkeypatch.setattr(pages, "read", read_and_lose)
    fetch = fetched(store, *range(10))
    assert (fetch.num_found, len(fetch.pages)) == (10, 2)
    wait_for(lambda: store.costs is None)
    assert not store.wants(digests(77)[0])
    assert fetched(store, 1).pages == []  # at once, and nothing
    monkeypatch.setattr(pages, "read", read)
    own_valkey.start()
    wait_for(lambda: store.costs is not None)
    assert len(fetched(store, *range(10)).pages) in (0, 10)  # what its disk had
    store.stop(WAIT_S)


def test_a_store_that_hangs_says_so_before_its_timeout(
    own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_store, "STUCK_S", 0.02)
    store = RedisPageStore(pages_of(connect(own_valkey.url)))
    store.start()
    wait_for(lambda: store.costs is not None)
    with own_valkey.connect() as client:
        client.execute_command("CLIENT", "PAUSE", 400, "ALL")
    fetch = store.fetch(digests(1), lambda: None)
    wait_for(lambda: store.costs is None)
    assert not fetch.is_done
    wait_for(lambda: fetch.is_done)
    wait_for(lambda: store.costs is not None)
    store.stop(WAIT_S)


def test_one_slow_measurement_moves_the_costs_only_a_little(store: RedisPageStore) -> None:
    store._costs = page_store.StoreCosts(1.0, 1.0)
    store._learn(page_s=1000.0)
    assert store._costs.page_s == pytest.approx(1.6)


def test_a_store_that_has_stopped_holds_no_connection(valkey: Valkey) -> None:
    client = valkey.connect()
    client.client_setname("store")
    store = RedisPageStore(pages_of(client))
    store.start()
    wait_for(lambda: store.costs is not None)
    with valkey.connect() as other:
        assert "store" in names_of_clients(other)
        store.stop(WAIT_S)
        wait_for(lambda: "store" not in names_of_clients(other))


def names_of_clients(client: redis.Redis) -> list[str]:
    return [each["name"] for each in client.client_list()]
