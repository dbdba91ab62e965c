"""Jobs, endings and small shortcuts for the tests of the wire and the job store."""

from __future__ import annotations

import time

import redis.asyncio

from worker.held_job import Ending
from worker.wire import keys, queueing
from worker.wire.messages import (
    Delta,
    Failed,
    Finished,
    GenerateJob,
    ModelInfo,
    Prompts,
    Sampling,
    Usage,
    WorkerInfo,
)

MODEL = "org/model"
PROMPT = "a prompt that nobody but the worker may see"
QUEUE = keys.queue_name(MODEL)
QUEUES = keys.queue_names(MODEL)
INFO = WorkerInfo("w1", ModelInfo(MODEL, 2048, ["ar", "deer"], 1, "fingerprint"), 64)


def make_job(
    job_id: str,
    *,
    stream: bool = True,
    api_id: str = "api1",
    tenant: str = "tenant",
    num_prompts: int = 1,
    mode: str | None = None,
) -> GenerateJob:
    return GenerateJob(
        job_id=job_id,
        api_id=api_id,
        model=MODEL,
        tenant=tenant,
        mode=mode,
        created=time.time(),
        input=Prompts([PROMPT] * num_prompts),
        sampling=Sampling(seed=7),
        stream=stream,
    )


async def put(
    client: redis.asyncio.Redis,
    job: GenerateJob | str,
    *,
    queue: str = QUEUE,
    timeout_s: int = 60,
    max_queue_size: int = 1000,
    max_attempts: int = 2,
    max_running: int = 0,
    max_waiting: int = 0,
) -> int:
    """Enqueue a job, given or made by its name."""
    receipt = await queueing.enqueue(
        client,
        make_job(job) if isinstance(job, str) else job,
        queue=queue,
        timeout_s=timeout_s,
        result_ttl_s=100,
        max_queue_size=max_queue_size,
        max_attempts=max_attempts,
        failure_ttl_s=200,
        max_running=max_running,
        max_waiting=max_waiting,
    )
    return receipt.position


def delta(job_id: str, index: int, finish_reason: str | None = None) -> Delta:
    return Delta(job_id, index, 0, [index], f"t{index}", finish_reason)


def finished(job_id: str, num_deltas: int = 1, result: bytes | None = b"text") -> Ending:
    event = Finished(job_id, num_deltas, Usage(3, num_deltas, 0))
    return Ending(job_id, "finished", event, result)


def failed(job_id: str) -> Ending:
    event = Failed(job_id, 500, "the engine broke", "engine_error")
    return Ending(job_id, "failed", event, exc_info="EngineError: broke")


def stopped(job_id: str) -> Ending:
    return Ending(job_id, "stopped", Failed(job_id, 499, "stopped", "cancelled"))
