"""The one place where the API's connections to Redis are made."""

from __future__ import annotations

import asyncio
import logging
import uuid

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from api.settings import SettingsError
from api.steady_connection import steady
from worker.wire import keys, queueing
from worker.wire.redis_faults import why_refused, why_silent, why_unfit
from worker.wire.redis_url import RedisAddress, read_redis_url

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 32
WAIT_S = 5.0  # for a free connection, and for an answer
CONNECT_TIMEOUT_S = 3.0


class _BlockingSentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Asks the sentinels for the master, and lets callers wait for a free connection."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:  # the end, and not a change of masters
            await self.sentinel_manager.aclose()


def connect(url: str) -> Redis:
    """Return a client over a pool of its own; closing the client closes the pool."""
    address = read_redis_url(url)
    options = {
        "max_connections": MAX_CONNECTIONS,
        "timeout": WAIT_S,
        "socket_timeout": WAIT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        **address.options,
    }
    if address.sentinels:
        return steady(Redis.from_pool(_sentinel_pool(address, options)))
    kind = SSLConnection if address.is_tls else Connection
    if "path" in options:
        kind = UnixDomainSocketConnection  # type: ignore[assignment]
    return steady(Redis.from_pool(BlockingConnectionPool(connection_class=kind, **options)))


async def check_redis(url: str) -> None:
    """Raise SettingsError for a Redis that will not do; one that is away may come later."""
    address = read_redis_url(url)
    async with connect(url) as redis:
        try:
            async with asyncio.timeout(WAIT_S):
                unfit = why_unfit(await redis.info())
                await _try_out(redis)
        except (RedisError, OSError) as error:
            refusal = why_refused(error, address)
            if refusal is not None:
                raise SettingsError(refusal) from None
            logger.warning("starting without the queue: %s", why_silent(error, address))
        else:
            if unfit is not None:
                raise SettingsError(unfit)


async def _try_out(redis: Redis) -> None:
    """Do a little of each kind of what the API does: what its user may not do comes out."""
    await queueing.live_workers(redis)
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(keys.reply_channel(uuid.uuid4().hex[:12]))
        await pubsub.get_message(timeout=WAIT_S)


def _sentinel_pool(address: RedisAddress, options: dict[str, object]) -> _BlockingSentinelPool:
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
    return _BlockingSentinelPool(  # type: ignore[no-untyped-call]
        address.service, manager, ssl=address.is_tls, **options
    )
