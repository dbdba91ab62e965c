"""Connections to Redis that fail in one way only: with redis-py's own errors."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ConnectionError


class _Steady:
    """Writes to a socket that uvloop has closed meanwhile: its RuntimeError is a lost connection.

    redis-py knows OSError alone: the request would end in a 500.
    """

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        try:
            await super().send_packed_command(*args, **kwargs)  # type: ignore[misc]
        except RuntimeError as error:
            raise ConnectionError(str(error)) from error


def steady(redis: Redis) -> Redis:
    """Have all connections that this client makes from now on fail so; returns the client."""
    pool = redis.connection_pool
    kind = pool.connection_class
    pool.connection_class = type(f"Steady{kind.__name__}", (_Steady, kind), {})
    return redis
