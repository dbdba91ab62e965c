"""Real worker processes are killed at any moment; every job ends once, with all its output."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest
import redis
import redis.asyncio

from tests.valkey import Valkey
from tests.wire.samples import QUEUE, QUEUES, put
from worker.job_store import JobStore
from worker.wire import queueing

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

NUM_JOBS, NUM_DELTAS, NUM_KILLS = 40, 6, 4

# Continues each job where its log ends, one delta and one line a step, until it is killed.
WORKER = f"""
import sys, time, redis
from tests.wire.samples import QUEUES, delta, finished
from worker.job_store import JobStore, StepRecord

store = JobStore(redis.Redis.from_url(sys.argv[1]), sys.argv[2], lease_s=0.5)
next_index = {{}}
while True:
    for claim in store.claim(QUEUES, 4 - len(next_index)):
        next_index[claim.job.job_id] = len(claim.deltas)
    deltas = [delta(name, index) for name, index in next_index.items() if index < {NUM_DELTAS}]
    done = [name for name, index in next_index.items() if index + 1 >= {NUM_DELTAS}]
    lost = store.emit(StepRecord(deltas=deltas, endings=[finished(n, {NUM_DELTAS}) for n in done]))
    print("step", flush=True) if deltas else time.sleep(0.01)
    next_index = {{n: i + 1 for n, i in next_index.items() if n not in lost and n not in done}}
"""


async def test_no_kill_loses_or_doubles_a_job_or_a_token(
    async_redis: redis.asyncio.Redis, redis_client: redis.Redis, valkey: Valkey
) -> None:
    chance = random.Random(1)
    supervisor = JobStore(redis_client, "supervisor")
    for life in range(NUM_KILLS + 1):
        for number in range(life * NUM_JOBS // NUM_KILLS, (life + 1) * NUM_JOBS // NUM_KILLS):
            if number < NUM_JOBS:
                await put(async_redis, f"j{number}", max_attempts=100)
        process = _start(valkey, f"w{life}")
        if life < NUM_KILLS:
            _wait_for_steps(process, chance.randint(1, NUM_DELTAS - 1))
        else:
            _wait_until_all_are_finished(redis_client, supervisor)
        process.kill()
        process.communicate()
        if life % 2:  # the others' jobs wait for the lease
            supervisor.reap_worker(f"w{life}")
    for number in range(NUM_JOBS):
        log = await queueing.read_log(async_redis, f"j{number}")
        assert [delta.index for delta in log] == list(range(NUM_DELTAS))
        assert redis_client.xlen(f"rq:results:j{number}") == 1
    attempts = [int(redis_client.hget(f"rq:job:j{n}", "dfl_attempt") or 0) for n in range(NUM_JOBS)]
    assert max(attempts) > 1, "no kill has hit a running job: the test proves nothing"


def _start(valkey: Valkey, name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WORKER, valkey.url, name]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def _wait_for_steps(process: subprocess.Popen[bytes], count: int) -> None:
    """Return some time after a step: the worker does not wait for us."""
    assert process.stdout is not None
    for _ in range(count):
        assert process.stdout.readline() == b"step\n"


def _wait_until_all_are_finished(client: redis.Redis, supervisor: JobStore) -> None:
    deadline = time.monotonic() + 30
    while client.zcard(f"rq:finished:{QUEUE}") < NUM_JOBS:
        assert time.monotonic() < deadline
        supervisor.reap(QUEUES)
        time.sleep(0.02)
