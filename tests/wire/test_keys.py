"""Names in Redis."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import redis

from tests.valkey import Valkey
from worker.wire import keys

# A job's whole life, seen by our scripts and by rq.
ONE_LIFE = """
import asyncio, sys
import redis, redis.asyncio
from rq.job import Job
from tests.wire.samples import QUEUES, finished, put
from worker.held_job import StepRecord
from worker.job_store import JobStore

async def enqueue():
    async with redis.asyncio.Redis.from_url(sys.argv[1]) as client:
        await put(client, "a")

asyncio.run(enqueue())
with redis.Redis.from_url(sys.argv[1]) as client:
    store = JobStore(client, "w1")
    assert len(store.claim(QUEUES, 1)) == 1
    assert not store.emit(StepRecord(endings=[finished("a")]))
    assert Job.fetch("a", connection=client).return_value() == "text"
"""


def test_a_models_queues_come_most_urgent_first() -> None:
    assert keys.queue_names("tiny") == ("tiny.interactive", "tiny.default", "tiny.batch")


def test_a_models_name_cannot_break_rqs_lists_or_a_dashboards_url() -> None:
    name = keys.queue_name("org/a model, {v2}", "batch")
    assert not set(name) & set("/, {}%:?#&")
    assert name.endswith(".batch")


def test_different_models_have_different_queues() -> None:
    models = ["a/b", "a~2fb", "a-b", "a_b", "a.b", "a b", "a//b", "ä", "a"]
    assert len({keys.queue_name(model) for model in models}) == len(models)


def test_an_unknown_priority_is_refused() -> None:
    with pytest.raises(ValueError, match="interactive, default, batch"):
        keys.queue_name("tiny", "urgent")


def test_rqs_own_setting_of_the_prefix_holds_for_both_sides(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    environment = {**os.environ, "RQ_KEY_PREFIX": "{mine}"}
    command = [sys.executable, "-c", ONE_LIFE, valkey.url]
    subprocess.run(command, env=environment, check=True, timeout=60)
    found = {key.decode().split(":")[0] for key in redis_client.scan_iter()}
    assert found <= {"{mine}", "dfl"} and "{mine}" in found
