"""Joins an engine to the queue and runs it until the process is asked to stop."""

from __future__ import annotations

import gc
import logging
import signal
import time

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from worker.batch_worker import BatchWorker
from worker.engine_port import EnginePort
from worker.io_loop import IoLoop, LoopLimits
from worker.job_store import JobStore
from worker.mailbox import Mailbox
from worker.question_desk import QuestionDesk
from worker.settings import WorkerSettings
from worker.wire import keys

log = logging.getLogger("worker")

CALL_TIMEOUT_S = 10.0
START_TIMEOUT_S = 30.0


def connect(url: str) -> Redis:
    """Return a client that tries a call again, shortly: the loop does the long waiting."""
    retry = Retry(ExponentialBackoff(cap=0.2, base=0.02), 2)
    return Redis.from_url(url, retry=retry, socket_timeout=CALL_TIMEOUT_S)


def serve(engine: EnginePort, settings: WorkerSettings, name: str) -> int:
    """Serve the engine's model until a signal; return the process's exit code."""
    client = connect(settings.redis_url)
    _wait_for(client)
    mailbox = Mailbox()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: mailbox.request_stop())
    logging.getLogger("rq.worker").setLevel(logging.WARNING)  # what it tells, we tell
    queues = keys.queue_names(engine.model_name)
    worker = BatchWorker(
        queues,
        connect(settings.redis_url),
        name=name,
        mailbox=mailbox,
        question_channel=keys.question_channel(engine.model_name),
    )
    store = JobStore(
        client,
        name,
        lease_s=settings.lease,
        result_ttl_s=settings.result_ttl,
        failure_ttl_s=settings.failure_ttl,
        fingerprint=engine.fingerprint,
    )
    worker.begin()
    gc.collect()
    gc.freeze()  # the libraries and the model: to look through them takes longer than a step
    try:
        log.info("worker %s serves %s, %d at once", name, engine.model_name, engine.max_batch_size)
        desk = QuestionDesk(client, engine, name)
        return IoLoop(engine, store, worker, mailbox, _limits(settings), desk).run()
    finally:
        _say_goodbye(worker)


def _limits(settings: WorkerSettings) -> LoopLimits:
    return LoopLimits(
        drain_s=settings.drain_timeout,
        beat_s=settings.lease / 6,
        outage_buffer_bytes=settings.outage_buffer_mb << 20,
    )


def _wait_for(client: Redis) -> None:
    """Wait for Redis at the start; raises RedisError when it does not come."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            client.ping()
        except RedisError as error:
            if time.monotonic() > deadline:
                raise
            log.warning("waiting for Redis: %s", error)
            time.sleep(1.0)
        else:
            return


def _say_goodbye(worker: BatchWorker) -> None:
    try:
        worker.end()
    except RedisError as error:
        log.warning("Redis is away, RQ will notice our death by itself: %s", error)
