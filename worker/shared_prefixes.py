"""Opens the prefix cache's store in Redis around a worker's life, where the settings want one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis

from engine.dfastllm_engine import DFastLLMEngine
from worker import redis_connection
from worker.page_seal import PageSeal
from worker.page_store import RedisPageStore
from worker.redis_pages import RedisPages
from worker.settings import WorkerSettings

log = logging.getLogger("worker.pages")

CALL_TIMEOUT_S = 2.0
STOP_S = 3.0


@contextmanager
def shared_prefixes(engine: DFastLLMEngine, settings: WorkerSettings) -> Iterator[None]:
    """Let the engine share prefixes through Redis for the length of a block."""
    if not settings.prefix_cache_redis_mb:
        yield
        return
    page_bytes = engine.page_bytes
    if page_bytes is None:
        log.warning("VDIFF_PREFIX_CACHE_REDIS_MB: this model has no pages that could be shared")
        yield
        return
    if not settings.prefix_cache_secret:
        log.warning("VDIFF_PREFIX_CACHE_SECRET is not set: whoever can write to Redis can plant KV")
    store = RedisPageStore(_pages(engine.page_tag, page_bytes, settings))
    engine.use_page_store(store)
    store.start()
    try:
        yield
    finally:
        store.stop(STOP_S)


def connect(url: str) -> Redis:
    """Return a client that gives up at once: whoever waits for pages computes them instead."""
    return redis_connection.connect(url, call_timeout_s=CALL_TIMEOUT_S, num_retries=0)


def _pages(tag: bytes, page_bytes: int, settings: WorkerSettings) -> RedisPages:
    return RedisPages(
        connect(settings.prefix_cache_redis_url or settings.redis_url),
        PageSeal(tag, page_bytes, settings.prefix_cache_secret or ""),
        cap_bytes=settings.prefix_cache_redis_mb << 20,
        ttl_s=settings.prefix_cache_ttl,
    )
