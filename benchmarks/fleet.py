"""Several workers over one filled queue: their rate, and what each part had to do for it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import redis.asyncio
from redis import Redis

from benchmarks.held_worker import GO, READY
from benchmarks.model_free import cpu_seconds, queue_in_folder, worker_command
from benchmarks.redis_watch import counters
from benchmarks.rounds import Sample
from benchmarks.server import process
from worker.wire import keys, queueing
from worker.wire.messages import GenerateJob, Prompts, Sampling

MODEL = "fake"
QUEUE = keys.queue_name(MODEL)
FINISHED = f"{keys.RQ_PREFIX}:finished:{QUEUE}"
AT_ONCE = 32  # jobs that are being enqueued
WAIT_S = 60.0
RESULT_TTL_S = 600


@dataclass(frozen=True)
class Load:
    """What the engine is like, and what each job asks of it; more than one token is streamed."""

    step_s: float
    batch: int
    num_tokens: int
    jobs_a_worker: int


def measure(load: Load, num_workers: int) -> Sample:
    """Fill a queue, let so many workers go, and wait until it is done."""
    num_jobs = load.jobs_a_worker * num_workers
    flags = ("--step-s", str(load.step_s), "--max-batch-size", str(load.batch))
    with ExitStack() as stack:
        folder, queue = stack.enter_context(queue_in_folder())
        client = stack.enter_context(Redis.from_url(queue.url))
        command = worker_command("benchmarks.held_worker", queue, *flags)
        logs = [folder / f"worker{number}.log" for number in range(num_workers)]
        workers = [stack.enter_context(process(command, log)) for log in logs]
        _wait(lambda: client.llen(READY) == num_workers, "the workers come up")
        empty_s = main_thread_s(client)
        asyncio.run(_fill(queue.url, load, num_jobs))
        pids = [worker.process.pid for worker in workers]
        before, began = _counts(client, pids), _clock(client)
        client.rpush(GO, *[""] * num_workers)
        num_looks = _wait(lambda: client.zcard(FINISHED) == num_jobs, "the jobs are done")
        after = _counts(client, pids)
        # Scored by when they are forgotten.
        ((_, forgotten),) = client.zrevrange(FINISHED, 0, 0, withscores=True)
    used = {kind: after[kind] - before[kind] for kind in after}
    seconds = forgotten - RESULT_TTL_S - began
    return {
        **used,
        "reads": used["reads"] - num_looks,
        "num_jobs": num_jobs,
        "num_tokens": num_jobs * load.num_tokens,
        "seconds": seconds,
        "jobs_s": num_jobs / seconds,
        "valkey_busy": used["valkey_cpu_s"] / seconds,
        "enqueue_valkey_cpu_s": before["valkey_cpu_s"] - empty_s,
    }


def main_thread_s(client: Redis) -> float:
    """CPU seconds of the one thread that runs commands and scripts."""
    cpu = client.info("cpu")
    return float(cpu["used_cpu_user_main_thread"] + cpu["used_cpu_sys_main_thread"])


async def _fill(url: str, load: Load, num_jobs: int) -> None:
    waiting = deque(range(num_jobs))
    async with redis.asyncio.Redis.from_url(url) as client:

        async def put() -> None:
            while waiting:
                await queueing.enqueue(
                    client,
                    _job(f"job-{waiting.popleft()}", load),
                    queue=QUEUE,
                    timeout_s=600,
                    result_ttl_s=RESULT_TTL_S,
                    max_queue_size=num_jobs,
                    max_attempts=3,
                )

        await asyncio.gather(*(put() for _ in range(AT_ONCE)))


def _job(job_id: str, load: Load) -> GenerateJob:
    return GenerateJob(
        job_id=job_id,
        api_id="nobody",
        model=MODEL,
        tenant="anonymous",
        created=time.time(),
        input=Prompts(["a prompt of some words, as short ones are"]),
        sampling=Sampling(seed=0, max_tokens=load.num_tokens),
        stream=load.num_tokens > 1,
    )


def _counts(client: Redis, pids: list[int]) -> dict[str, float]:
    return {
        **counters(client),
        "worker_cpu_s": sum(map(cpu_seconds, pids)),
        "valkey_cpu_s": main_thread_s(client),
    }


def _clock(client: Redis) -> float:
    seconds, micros = client.time()
    return float(seconds) + micros / 1e6


def _wait(is_so: Callable[[], bool], what: str) -> int:
    """Return how often it was looked."""
    deadline = time.monotonic() + WAIT_S
    num_looks = 1
    while not is_so():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited in vain until {what}")
        time.sleep(0.1)
        num_looks += 1
    return num_looks
