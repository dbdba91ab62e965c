"""Pages in a real Valkey: sealed, counted for all workers together, never in the queue's way."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import redis

from tests.acl_server import client_of, refusals, running_acl_server, url_of
from tests.valkey import Valkey
from worker.page_seal import SEAL_BYTES, BrokenSealError, PageSeal
from worker.redis_pages import RedisPages
from worker.shared_prefixes import connect
from worker.wire import keys

PAGE_BYTES = 1000
SEALED = PAGE_BYTES + SEAL_BYTES
TOTAL = "dfl:kv:bytes"


def pages_of(
    client: redis.Redis,
    *,
    tag: bytes = b"model, float32",
    secret: str = "secret",
    cap: int = 100 * SEALED,
    ttl_s: int = 60,
) -> RedisPages:
    return RedisPages(client, PageSeal(tag, PAGE_BYTES, secret), cap_bytes=cap, ttl_s=ttl_s)


@pytest.fixture
def pages(redis_client: redis.Redis) -> RedisPages:
    return pages_of(redis_client)


def digests(*numbers: int) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in numbers]


def content(number: int) -> memoryview:
    return memoryview(bytes([number]) * PAGE_BYTES)


def put(pages: RedisPages, *numbers: int) -> int:
    return pages.write(digests(*numbers), [content(number) for number in numbers])


def there(pages: RedisPages, numbers: Sequence[int]) -> list[int]:
    """Which of these pages are there, each looked for alone."""
    return [number for number in numbers if pages.find(digests(number))]


def counted(client: redis.Redis) -> int:
    return int(client.get(TOTAL) or 0)


def test_what_one_writes_another_reads(pages: RedisPages, valkey: Valkey) -> None:
    assert put(pages, 1, 2, 3) == 3
    other = pages_of(valkey.connect())
    assert other.find(digests(1, 2, 3, 4)) == 3
    assert other.read(digests(1, 2, 3)) == [content(1), content(2), content(3)]
    assert other.traffic.num_store_bytes_read == 3 * SEALED


def test_a_run_ends_where_a_page_is_missing(pages: RedisPages) -> None:
    put(pages, 1, 3)
    assert pages.find(digests(1, 2, 3)) == 1
    assert pages.read(digests(1, 2, 3)) == [content(1)]


@pytest.mark.parametrize("changed", [{"tag": b"model, bfloat16"}, {"secret": "another"}])
def test_another_model_type_or_secret_sees_none_of_it(
    pages: RedisPages, redis_client: redis.Redis, changed: dict[str, str]
) -> None:
    put(pages, 1)
    assert pages_of(redis_client, **changed).find(digests(1)) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "of another digest", "forged"])
def test_what_was_not_sealed_by_us_under_this_digest_is_not_read(
    pages: RedisPages, redis_client: redis.Redis, damage: str
) -> None:
    put(pages, 1, 2)
    name, other = (keys.page(pages.seal.namespace, digest) for digest in digests(1, 2))
    sealed = bytearray(redis_client.get(name) or b"")
    if damage == "a flipped bit":
        sealed[-1] ^= 1
    elif damage == "cut short":
        del sealed[-1]
    elif damage == "of another digest":
        sealed = bytearray(redis_client.get(other) or b"")
    else:  # by someone who knows all but the secret
        forger = PageSeal(b"model, float32", PAGE_BYTES, "guess")
        sealed = bytearray(forger.seal(digests(1)[0], content(9)))
    redis_client.set(name, bytes(sealed), ex=60)
    assert pages.read(digests(1, 2)) == []
    assert pages.traffic.num_store_pages_broken == 1
    put(pages, 1)  # whoever has computed it puts a whole one there
    assert pages.read(digests(1)) == [content(1)]


def test_without_a_secret_corruption_is_noticed_all_the_same() -> None:
    seal = PageSeal(b"tag", PAGE_BYTES)
    sealed = bytearray(seal.seal(b"digest", content(1)))
    assert seal.open(b"digest", bytes(sealed)) == content(1)
    sealed[20] ^= 4
    with pytest.raises(BrokenSealError):
        seal.open(b"digest", bytes(sealed))


def test_the_cap_holds_for_all_workers_together_and_the_longest_unread_goes_first(
    redis_client: redis.Redis, valkey: Valkey
) -> None:
    one, two = (pages_of(client, cap=4 * SEALED) for client in (redis_client, valkey.connect()))
    put(one, 1, 2)
    time.sleep(0.01)
    put(two, 3, 4)
    time.sleep(0.01)
    assert one.find(digests(1)) == 1  # which makes it the youngest
    time.sleep(0.01)
    put(two, 5, 6)
    assert there(one, range(1, 7)) == [1, 4, 5, 6]
    assert counted(redis_client) == 4 * SEALED
    assert len(redis_client.keys("dfl:kv:*:*")) == 4


def test_writing_a_page_again_counts_it_once(pages: RedisPages, redis_client: redis.Redis) -> None:
    put(pages, 1)
    put(pages, 1, 2)
    assert counted(redis_client) == 2 * SEALED


def test_a_page_larger_than_the_cap_throws_nobody_out(redis_client: redis.Redis) -> None:
    put(pages_of(redis_client), 1)
    assert put(pages_of(redis_client, cap=SEALED - 1), 2) == 0
    assert counted(redis_client) <= SEALED


def test_every_key_dies_by_itself(pages: RedisPages, redis_client: redis.Redis) -> None:
    put(pages, 1, 2)
    pages.find(digests(1))
    pages.probe()
    names = redis_client.keys("dfl:kv*")
    assert len(names) == 4
    assert all(0 < redis_client.ttl(name) <= 120 for name in names)


def test_what_has_expired_is_counted_no_longer(redis_client: redis.Redis) -> None:
    put(pages_of(redis_client, ttl_s=1), 1, 2)
    time.sleep(1.1)
    late = pages_of(redis_client)
    put(late, 3)
    assert counted(redis_client) == SEALED
    late.trim()
    assert redis_client.zcard("dfl:kv") == 1


def test_a_lost_count_is_no_leak(pages: RedisPages, redis_client: redis.Redis) -> None:
    put(pages, 1)
    redis_client.delete(TOTAL)
    put(pages, 2)
    assert counted(redis_client) == 2 * SEALED


def test_above_half_of_maxmemory_pages_make_room_for_the_queue(own_valkey: Valkey) -> None:
    with own_valkey.connect() as client:
        pages = RedisPages(client, PageSeal(b"tag", 100_000), cap_bytes=1 << 30, ttl_s=60)
        whole = memoryview(bytes(100_000))
        free = int(client.info("memory")["used_memory"])
        client.config_set("maxmemory", 2 * (free + 1_050_000))
        for number in range(20):
            pages.write(digests(number), [whole])
        num_kept = client.zcard("dfl:kv")
        assert 3 <= num_kept <= 10
        client.set("queue", bytes(1_000_000))
        pages.trim()
        assert client.zcard("dfl:kv") == 0
        assert pages.write(digests(99), [whole]) == 0
        assert pages.traffic.num_store_pages_refused == 1


def test_at_maxmemory_pages_are_still_thrown_out_but_none_is_written(own_valkey: Valkey) -> None:
    with own_valkey.connect() as client:
        pages = pages_of(client)
        put(pages, *range(50))
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) - 1)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.set("queue", "x")
        assert put(pages, 60) == 0
        assert client.zcard("dfl:kv") == 0


def test_a_batch_of_pages_is_one_round_trip(pages: RedisPages, redis_client: redis.Redis) -> None:
    pages.trim()  # loads the script
    pages.find([])
    before = redis_client.info("stats")["total_reads_processed"]
    put(pages, *range(30))
    pages.find(digests(*range(30)))
    pages.read(digests(*range(30)))
    after = redis_client.info("stats")["total_reads_processed"]
    assert after - before <= 5  # a write of 30 kB may be read in pieces; and INFO itself


def test_the_workers_user_may_do_all_of_it_and_the_apis_none() -> None:
    with running_acl_server() as server:
        pages = pages_of(connect(url_of(server, "worker")))
        assert put(pages, 1, 2) == 2
        assert pages.find(digests(1, 2)) == 2
        assert pages.read(digests(1)) == [content(1)]
        pages.probe()
        pages.trim()
        with server.connect() as admin:
            assert refusals(admin) == []
        name = keys.page(pages.seal.namespace, digests(1)[0])
        with client_of(server, "api") as api, pytest.raises(redis.exceptions.NoPermissionError):
            api.get(name)
