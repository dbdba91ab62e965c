"""Engines around small real models share prefixes through a real Valkey, whatever happens to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from engine.cache.host_page import HostPage
from engine.dfastllm_engine import DFastLLMEngine
from tests.engine.engines import (
    Ask,
    TinyModels,
    add,
    batcher_of,
    check_nothing_leaked,
    drain,
    load_tiny_models,
    make_engine,
)
from tests.engine.test_lower_floors import PREFIX, ask, cached
from tests.valkey import Valkey
from worker.page_seal import PageSeal
from worker.page_store import RedisPageStore
from worker.redis_pages import RedisPages
from worker.shared_prefixes import connect

NUM_PAGES = 10
"""Of the prefix."""
WAIT_S = 20.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    folder: Path = tmp_path_factory.mktemp("tiny")
    return load_tiny_models(folder)


@dataclass
class Worker:
    """An engine and its store's thread; its queue is this test."""

    engine: DFastLLMEngine
    store: RedisPageStore

    def see(self, one: Ask) -> tuple[list[int], int]:
        return cached(self.engine, one)


Start = Callable[..., Worker]


@pytest.fixture
def start(models: TinyModels, own_valkey: Valkey) -> Iterator[Start]:
    """Starts workers on one Valkey; in the end each must have all its pages."""
    started: list[Worker] = []

    def start_one(*, tag: bytes = b"tag", cap: int = 1 << 24) -> Worker:
        engine = make_engine(models)
        assert engine.page_bytes is not None
        floors = batcher_of(engine).prefix_cache.floors
        assert floors is not None
        floors.rule.note_prefill = lambda *_: None  # type: ignore[method-assign]
        seal = PageSeal(tag, engine.page_bytes, "secret")
        store = RedisPageStore(RedisPages(connect(own_valkey.url), seal, cap_bytes=cap, ttl_s=60))
        store.start()
        engine.use_page_store(store)
        wait_for(lambda: store.costs is not None)
        started.append(Worker(engine, store))
        return started[-1]

    yield start_one
    for worker in started:
        worker.store.stop(WAIT_S)
        check_nothing_leaked(worker.engine)


@pytest.fixture
def alone(models: TinyModels) -> list[int]:
    """What an engine says that shares nothing."""
    return cached(make_engine(models), ask(tail=5))[0]


@pytest.fixture
def client(own_valkey: Valkey) -> Iterator[redis.Redis]:
    with own_valkey.connect() as client:
        yield client


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def stored(client: redis.Redis) -> list[bytes]:
    """The pages in Redis, the oldest first, once they are all there."""
    wait_for(lambda: client.zcard("dfl:kv") >= NUM_PAGES)
    members = [member.split(b":", 1)[1] for member in client.zrange("dfl:kv", 0, -1)]
    return [b"dfl:kv:" + member for member in members]


def test_a_fresh_worker_goes_on_from_what_only_another_has_computed(
    start: Start, client: redis.Redis, alone: list[int]
) -> None:
    start().see(ask())
    stored(client)
    assert start().see(ask(tail=5)) == (alone, PREFIX)


def test_another_tenant_computes(start: Start, client: redis.Redis, alone: list[int]) -> None:
    start().see(ask())
    stored(client)
    assert start().see(ask(tail=5, salt="another")) == (alone, 0)


def test_a_worker_of_another_tag_computes(
    start: Start, client: redis.Redis, alone: list[int]
) -> None:
    start().see(ask())
    stored(client)
    assert start(tag=b"other weights").see(ask(tail=5)) == (alone, 0)


def test_behind_a_corrupt_page_all_is_computed(
    start: Start, client: redis.Redis, alone: list[int]
) -> None:
    start().see(ask())
    for name in stored(client):
        client.setrange(name, 50, b"garbage!")
    second = start()
    assert second.see(ask(tail=5)) == (alone, 0)
    assert second.store.get_stats()["num_store_pages_broken"] == 1
    # What it has computed instead is whole, and there for the next.
    wait_for(lambda: second.store.get_stats()["num_store_pages_written"] >= NUM_PAGES)
    assert start().see(ask(tail=5)) == (alone, PREFIX + 4)


def test_behind_a_page_that_was_thrown_out_all_is_computed(
    start: Start, client: redis.Redis, alone: list[int]
) -> None:
    first = start()
    first.see(ask())
    stored(client)
    digests = list(batcher_of(first.engine).prefix_cache._page_of)
    client.delete(f"dfl:kv:{first.store._pages.seal.namespace}:{digests[6].hex()}")
    assert start().see(ask(tail=5)) == (alone, 24)


def test_when_redis_dies_in_mid_fetch_the_rest_is_computed_and_others_run_on(
    start: Start,
    client: redis.Redis,
    own_valkey: Valkey,
    alone: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = start()
    first.see(ask())
    stored(client)
    second = start()
    page_bytes = first.store._pages.seal.sealed_bytes
    monkeypatch.setattr("worker.redis_pages.READ_BYTES", 3 * page_bytes)
    read = second.store._pages.read

    def read_and_lose(batch: list[bytes]) -> list[memoryview]:
        found = read(batch)
        own_valkey.kill()
        return found

    monkeypatch.setattr(second.store._pages, "read", read_and_lose)
    other = ask(seed=9, prefix=2, tail=1)
    add(second.engine, "a", ask(tail=5))
    add(second.engine, "b", other)
    results = drain(second.engine)
    assert results["a"].token_ids == alone
    summary = results["a"].summary
    assert summary is not None
    assert summary.num_cached_tokens == 12
    assert results["b"].finish_reason is not None
    assert second.see(ask(tail=7))[1] == PREFIX  # on the device now, with Redis away


def test_when_redis_is_full_everything_is_computed_and_the_queue_can_write(
    start: Start, client: redis.Redis, alone: list[int]
) -> None:
    first = start()
    client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + (1 << 20))
    first.see(ask())
    wait_for(lambda: first.store.get_stats()["num_store_pages_refused"] >= NUM_PAGES)
    assert client.set("job", "x" * 100_000)
    assert start().see(ask(tail=5)) == (alone, 0)


def test_a_page_that_nobody_sealed_never_reaches_the_device(
    start: Start, client: redis.Redis, alone: list[int]
) -> None:
    """Someone who can write to Redis, and knows digests and layout, plants a page of his own."""
    first = start()
    first.see(ask())
    namespace = first.store._pages.seal.namespace
    forger = PageSeal(b"tag", first.store._pages.seal.page_bytes, "not the secret")
    for name in stored(client):
        assert name.decode().split(":")[2] == namespace
        digest = bytes.fromhex(name.decode().rsplit(":", 1)[1])
        page = HostPage.of(bytes(forger.page_bytes))
        client.set(name, forger.seal(digest, page.view()), ex=60)
    assert start().see(ask(tail=5)) == (alone, 0)
