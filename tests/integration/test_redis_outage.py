"""Redis is away longer than a lease, or says nothing: nobody is buried, and nobody stays deaf."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from random import Random

import pytest
import redis

from api.app import create_app
from api.redis_connection import connect as api_redis
from api.reply_channel import ReplyChannel
from api.settings import ApiSettings
from tests.api.fakes import serving
from tests.valkey import Valkey
from tests.worker_bench import (
    assert_complete,
    listening,
    make_job,
    put,
    retries_left,
    running_worker,
)
from worker.redis_connection import wait_for_redis
from worker.settings import SettingsError
from worker.wire.redis_url import read_redis_url

LEASE_S = 0.6
NUM_WORKERS = 4


def test_an_outage_longer_than_the_leases_costs_no_job_an_attempt(own_valkey: Valkey) -> None:
    jobs = [make_job(f"job-{number}", max_tokens=150) for number in range(NUM_WORKERS)]
    names = [job.job_id for job in jobs]
    with own_valkey.connect() as client, listening(client) as listener, ExitStack() as stack:
        for number in range(NUM_WORKERS):
            worker = running_worker(
                own_valkey, f"w{number}", step_s=0.02, lease=LEASE_S, max_batch_size=1
            )
            stack.enter_context(worker)
        put(own_valkey, *jobs)
        listener.wait_for_deltas(5, *names)
        client.execute_command("WAITAOF", 1, 0, 2000)
        own_valkey.kill()
        time.sleep(2 * LEASE_S)
        own_valkey.start()
        listener.wait_until_logged(client, *names)
        for job in jobs:
            assert assert_complete(listener, client, job).attempt == 1
            assert retries_left(client, job.job_id) == 2


def test_no_part_starts_on_a_server_that_evicts_keys(own_valkey: Valkey) -> None:
    with own_valkey.connect() as client, pytest.raises(SettingsError, match="noeviction"):
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "volatile-lru")
        wait_for_redis(client, read_redis_url(own_valkey.url))


def test_a_subscription_on_which_nothing_comes_is_renewed(
    valkey: Valkey, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.reply_channel.SILENCE_S", 0.1)
    with serving(create_app(ApiSettings(redis_url=valkey.url, sweep_s=0.05))):
        first = _subscribers(redis_client)
        assert len(first) == 1
        deadline = time.monotonic() + 20
        while first & _subscribers(redis_client):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def _subscribers(client: redis.Redis) -> set[str]:
    return {entry["id"] for entry in client.client_list(_type="pubsub")}


@pytest.mark.anyio
async def test_a_channel_closes_at_whatever_moment_it_is_asked_to(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python 3.11 loses a cancellation now and then: the more renewals, the more chances.
    monkeypatch.setattr("api.reply_channel.SILENCE_S", 0.01)
    rng = Random(0)
    async with api_redis(valkey.url) as client:
        for _ in range(30):
            channel = ReplyChannel(client, "api", sweep_s=0.002)
            channel.start()
            await asyncio.sleep(0.05 * rng.random())
            await asyncio.wait_for(channel.close(), 10)
