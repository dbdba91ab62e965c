"""Joins an engine to the queue and runs it until the process is asked to stop."""

from __future__ import annotations

import gc
import logging
import signal

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from worker.batch_worker import BatchWorker
from worker.engine_port import EnginePort
from worker.io_loop import IoLoop, LoopLimits
from worker.job_store import JobStore
from worker.mailbox import Mailbox
from worker.question_desk import QuestionDesk
from worker.redis_connection import connect, wait_for_redis
from worker.run_spans import traced_runs
from worker.settings import SettingsError, WorkerSettings
from worker.wire import keys
from worker.wire.redis_faults import why_refused
from worker.wire.redis_url import read_redis_url

log = logging.getLogger("worker")


def serve(engine: EnginePort, settings: WorkerSettings, name: str) -> int:
    """Serve the engine's model until a signal; return the process's exit code.

    Raises SettingsError if there is no Redis, or none that will do.
    """
    address = read_redis_url(settings.redis_url)
    client = connect(settings.redis_url)
    wait_for_redis(client, address)
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
    store = _store(client, engine, settings, name)
    try:
        worker.begin()
        store.reap(queues)  # as every beat does; what this user may not do comes out here
    except ResponseError as error:
        if (refusal := why_refused(error, address)) is not None:
            raise SettingsError(refusal) from None
        raise
    gc.collect()
    gc.freeze()  # the libraries and the model: to look through them takes longer than a step
    log.info("worker %s serves %s, %d at once", name, engine.model_name, engine.max_batch_size)
    desk = QuestionDesk(client, engine, name)
    with traced_runs(name) as spans:
        try:
            return IoLoop(engine, store, worker, mailbox, _limits(settings), desk, spans).run()
        finally:
            _say_goodbye(worker, store)


def _store(client: Redis, engine: EnginePort, settings: WorkerSettings, name: str) -> JobStore:
    return JobStore(
        client,
        name,
        lease_s=settings.lease,
        result_ttl_s=settings.result_ttl,
        failure_ttl_s=settings.failure_ttl,
        fingerprint=engine.fingerprint,
        overdue_s=settings.overdue_after,
        overdue_share=settings.overdue_share,
        modes=engine.modes,
    )


def _limits(settings: WorkerSettings) -> LoopLimits:
    return LoopLimits(
        drain_s=settings.drain_timeout,
        beat_s=settings.lease / 6,
        outage_buffer_bytes=settings.outage_buffer_mb << 20,
        stream_interval_s=settings.stream_interval / 1000,
        is_burst=settings.burst,
    )


def _say_goodbye(worker: BatchWorker, store: JobStore) -> None:
    try:
        worker.end()
        store.reap_worker(worker.name)  # takes us off the API's list
    except RedisError as error:
        log.warning("Redis is away, RQ will notice our death by itself: %s", error)
