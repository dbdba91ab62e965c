"""Clients that leave and jobs that are cancelled, at every moment of a job's life."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import httpx
import pytest
import redis

from api.app import create_app
from api.settings import ApiSettings
from tests.api.fakes import serving
from tests.chaos.verdict import audit
from tests.stack import (
    COMPLETIONS,
    Stream,
    attempts,
    body_of,
    eventually,
    job_ids,
    undisturbed,
    wait_for_status,
    wait_until_ready,
)
from tests.valkey import Valkey
from tests.worker_bench import API_ID, Listener, make_job, put, running_worker, status_of
from worker.wire import keys, queueing
from worker.wire.messages import Accepted, Delta

ENDED = {"finished", "canceled"}


@pytest.fixture
def url(valkey: Valkey) -> Iterator[str]:
    settings = ApiSettings(redis_url=valkey.url, accept_patience_s=0.05, sweep_s=0.2)
    with serving(create_app(settings)) as url:
        yield url


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_gone_while_its_job_is_queued_takes_it_along(
    url: str, valkey: Valkey, redis_client: redis.Redis, stream: bool
) -> None:
    with running_worker(valkey, "w1"):
        wait_until_ready(url)
    with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=0.5) as client:
        _post_and_wait(client, url, body_of("gone", 5, stream=stream))
    (job_id,) = job_ids(redis_client)
    wait_for_status(redis_client, job_id, "canceled")
    with running_worker(valkey, "w2"):
        Stream(url, body_of("next", 5, stream=True)).assert_whole(undisturbed("next", 5))
    assert attempts(redis_client, job_id) == 0
    assert audit(redis_client) == []


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_gone_while_its_job_runs_leaves_its_place_to_the_next(
    url: str, valkey: Valkey, redis_client: redis.Redis, stream: bool
) -> None:
    with running_worker(valkey, "w1", step_s=0.01, max_batch_size=1):
        wait_until_ready(url)
        body = body_of("gone", 3000, stream=stream)
        if stream:
            Stream(url, body, leaves_after=3).join()
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url + COMPLETIONS, json=body, timeout=0.5)
        (job_id,) = job_ids(redis_client)
        Stream(url, body_of("next", 5, stream=True)).assert_whole(undisturbed("next", 5))
        wait_for_status(redis_client, job_id, "canceled")
        assert redis_client.scard("rq:worker:w1:executions") == 0
    assert attempts(redis_client, job_id) == 1
    assert audit(redis_client) == []


def test_clients_gone_while_their_jobs_finish_leave_one_ending_each(
    url: str, valkey: Valkey, redis_client: redis.Redis
) -> None:
    with running_worker(valkey, "w1", step_s=0.002, max_batch_size=16):
        wait_until_ready(url)
        # With the last tokens, and, of every fourth, long before them.
        clients = [
            Stream(url, body_of(f"{number}", 8 if number % 4 else 500, stream=True), 5 + number % 4)
            for number in range(32)
        ]
        for client in clients:
            client.join()
            whole = undisturbed(str(client.body["prompt"]), client.body["max_tokens"])
            assert whole.startswith(client.text)
        for client in clients:
            wait_for_status(redis_client, client.job_id, *ENDED)
    _assert_one_ending_each(redis_client, [client.job_id for client in clients])


def test_cancels_that_race_the_finish_leave_one_ending_each(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    names = [f"job-{number}" for number in range(80)]
    chance = random.Random(3)
    listener = Listener(redis_client)

    async def cancel_each() -> None:
        async with valkey.connect_async() as client:

            async def cancel(name: str) -> None:
                # A job takes 8 steps of 5 ms; every fourth is cancelled when it has ended.
                late = (b"queued", b"started") if int(name[4:]) % 4 == 0 else (b"queued",)
                while await client.hget(keys.job(name), "status") in late:
                    await asyncio.sleep(0.002)
                await asyncio.sleep(chance.uniform(0.0, 0.08))
                for _ in range(2):
                    await queueing.cancel(client, name)

            await asyncio.gather(*map(cancel, names))

    with running_worker(valkey, "w1", step_s=0.005, max_batch_size=16):
        eventually(lambda: bool(redis_client.exists(keys.worker("w1"))), "the worker is there")
        put(valkey, *(make_job(name, max_tokens=8) for name in names))
        asyncio.run(cancel_each())
        listener.wait_for_endings(*names)
    _assert_one_ending_each(redis_client, names)
    for name in names:
        words = [one for one in listener.events[name] if not isinstance(one, Delta | Accepted)]
        assert len(words) == 1, f"the API ({API_ID}) heard {words}"
    listener.close()


def _assert_one_ending_each(client: redis.Redis, names: list[str]) -> None:
    statuses = {name: status_of(client, name) for name in names}
    assert set(statuses.values()) == ENDED, "the test must see both endings"
    for name, status in statuses.items():
        assert client.xlen(f"rq:results:{name}") == (status == "finished")
    assert client.zcard(f"rq:wip:{keys.queue_name('fake')}") == 0
    assert audit(client) == []


def _post_and_wait(client: httpx.Client, url: str, body: dict[str, object]) -> None:
    """Post, and read whatever comes, until the client's patience ends."""
    with client.stream("POST", url + COMPLETIONS, json=body) as response:
        response.read()
