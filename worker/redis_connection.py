"""The one place where the worker's and the supervisor's connections to Redis are made."""

from __future__ import annotations

import logging
import time

from redis import Redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.connection import (
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from worker.settings import SettingsError
from worker.wire.redis_faults import why_refused, why_silent, why_unfit
from worker.wire.redis_url import RedisAddress, read_redis_url

log = logging.getLogger("worker")

CALL_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 3.0
START_TIMEOUT_S = 30.0


def connect(url: str, *, call_timeout_s: float | None = None, num_retries: int = 2) -> Redis:
    """Return a client that tries a call again, shortly: the loop does the long waiting."""
    address = read_redis_url(url)
    timeout_s = CALL_TIMEOUT_S if call_timeout_s is None else call_timeout_s
    options = {
        "retry": Retry(ExponentialBackoff(cap=0.2, base=0.02), num_retries),
        "socket_timeout": timeout_s,
        "socket_connect_timeout": min(CONNECT_TIMEOUT_S, timeout_s),
        **address.options,
    }
    if address.sentinels:
        return Redis.from_pool(_sentinel_pool(address, options))
    kind = SSLConnection if address.is_tls else Connection
    if "path" in options:
        kind = UnixDomainSocketConnection  # type: ignore[assignment]
    return Redis.from_pool(ConnectionPool(connection_class=kind, **options))


def wait_for_redis(client: Redis, address: RedisAddress) -> None:
    """Wait for a Redis that may hold the queue; raises SettingsError where none is to be had."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            unfit = why_unfit(client.info())
        except (RedisError, OSError) as error:
            refusal = why_refused(error, address)
            if refusal is None and time.monotonic() > deadline:
                refusal = why_silent(error, address)
            if refusal is not None:
                raise SettingsError(refusal) from None
            log.warning("waiting for Redis: %s", error)
            time.sleep(1.0)
        else:
            if unfit is not None:
                raise SettingsError(unfit)
            return


def _sentinel_pool(address: RedisAddress, options: dict[str, object]) -> SentinelConnectionPool:
    # A sentinel that is gone must not cost much: the next one knows the master as well.
    for_sentinels = {
        "socket_timeout": CONNECT_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
        "ssl": address.is_tls,
        **address.sentinel_options,
    }
    manager = Sentinel(  # type: ignore[no-untyped-call]
        address.sentinels, sentinel_kwargs=for_sentinels
    )
    return SentinelConnectionPool(  # type: ignore[no-untyped-call]
        address.service, manager, ssl=address.is_tls, **options
    )
