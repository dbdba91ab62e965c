"""A connection that the loop has closed under redis-py's feet."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio
import uvloop
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError

from api.steady_connection import steady
from tests.valkey import Valkey


async def _close_the_idle_connection(client: redis.asyncio.Redis) -> None:
    await client.ping()
    (connection,) = client.connection_pool._available_connections
    connection._writer.transport.close()


def test_a_command_after_the_loop_has_closed_its_socket_is_sent_on_another(valkey: Valkey) -> None:
    async def ping_again() -> None:
        retry = Retry(NoBackoff(), 1)
        async with steady(redis.asyncio.Redis.from_url(valkey.url, retry=retry)) as client:
            await _close_the_idle_connection(client)
            assert await client.ping()

    uvloop.run(ping_again())


def test_where_no_second_try_is_made_the_connection_is_lost_in_redis_pys_words(
    valkey: Valkey,
) -> None:
    async def ping_once() -> None:
        retry = Retry(NoBackoff(), 0)
        async with steady(redis.asyncio.Redis.from_url(valkey.url, retry=retry)) as client:
            await _close_the_idle_connection(client)
            with pytest.raises(ConnectionError):
                await client.ping()
            assert await client.ping()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ping_once())
