"""One worker with its queue filled beforehand: how fast it claims and finishes jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import redis.asyncio
from redis import Redis

from benchmarks.model_free import cpu_seconds, pid_of, queue_in_folder, worker_command
from benchmarks.redis_watch import counters
from benchmarks.rounds import Sample
from benchmarks.server import process
from worker.embedded_redis import EmbeddedRedis
from worker.wire import keys, queueing
from worker.wire.messages import GenerateJob, Prompts, Sampling

MODEL = "fake"
QUEUE = keys.queue_name(MODEL)
AT_ONCE = 32  # enqueued; not measured
TIMEOUT_S = 120.0
NOT_THERE = float("nan")


def measure(num_jobs: int, prompt: str) -> Sample:
    """Fill a queue, then start a worker; the time is from its first claim to its last ending."""
    with queue_in_folder() as (folder, queue), Redis.from_url(queue.url) as client:
        job_ids = asyncio.run(_fill(queue, num_jobs, prompt))
        before, valkey_before = counters(client), cpu_seconds(pid_of(queue))
        command = worker_command("tests.fake_worker", queue, "--max-batch-size", "64")
        with process(command, folder / "worker.log") as worker:
            _wait_for_end(client, num_jobs)
            worker_s = cpu_seconds(worker.process.pid)
            after, valkey_after = counters(client), cpu_seconds(pid_of(queue))
        seconds = _seconds(client, job_ids)
    return {
        "num_jobs": num_jobs,
        "seconds": seconds,
        "jobs_s": num_jobs / seconds,
        "ms_p50": NOT_THERE,
        "ms_p99": NOT_THERE,
        "api_cpu_s": NOT_THERE,
        "worker_cpu_s": worker_s,  # its start is in it
        "valkey_cpu_s": valkey_after - valkey_before,
        **{kind: after[kind] - before[kind] for kind in after},
    }


async def _fill(queue: EmbeddedRedis, num_jobs: int, prompt: str) -> Sequence[str]:
    job_ids = [f"job-{number}" for number in range(num_jobs)]
    waiting = iter(job_ids)
    async with redis.asyncio.Redis.from_url(queue.url) as client:

        async def put() -> None:
            for job_id in waiting:
                await queueing.enqueue(
                    client,
                    _job(job_id, prompt),
                    queue=QUEUE,
                    timeout_s=600,
                    result_ttl_s=600,
                    max_queue_size=num_jobs,
                    max_attempts=3,
                )

        await asyncio.gather(*(put() for _ in range(AT_ONCE)))
    return job_ids


def _job(job_id: str, prompt: str) -> GenerateJob:
    return GenerateJob(
        job_id=job_id,
        api_id="nobody",
        model=MODEL,
        tenant="anonymous",
        created=time.time(),
        input=Prompts([prompt]),
        sampling=Sampling(seed=0, max_tokens=1),
    )


def _wait_for_end(client: Redis, num_jobs: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    finished = f"{keys.RQ_PREFIX}:finished:{QUEUE}"
    while client.zcard(finished) < num_jobs:
        if time.monotonic() > deadline:
            raise RuntimeError("the worker does not finish its jobs")
        time.sleep(0.1)


def _seconds(client: Redis, job_ids: Sequence[str]) -> float:
    """From the first claim to the last ending, both as Redis noted them."""
    with client.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.hget(keys.job(job_id), "dfl_started")
            pipeline.xrevrange(f"{keys.RQ_PREFIX}:results:{job_id}", count=1)
        replies = pipeline.execute()
    started = min(float(value) for value in replies[::2])
    ended = max(float(fields[b"execution_ended_at"]) for ((_, fields),) in replies[1::2])
    return ended - started
