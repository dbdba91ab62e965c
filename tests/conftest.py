"""Fixtures for every test: a real Valkey, shared by a run and empty for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import redis
import redis.asyncio

from tests.valkey import Valkey, running_valkey


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests (`pytest.mark.anyio`) run on asyncio, as the API does."""
    return "asyncio"


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Valkey]:
    """One server a run; on TCP, too, for tools that know no unix sockets."""
    with running_valkey(tcp=True) as server:
        yield server


@pytest.fixture
def valkey(valkey_server: Valkey) -> Iterator[Valkey]:
    """The run's server, emptied, with no script loaded."""
    with valkey_server.connect() as client:
        client.flushall()
        client.script_flush()
    yield valkey_server
    valkey_server.close_clients()


@pytest.fixture
def redis_client(valkey: Valkey) -> Iterator[redis.Redis]:
    """A connection to the emptied server."""
    with valkey.connect() as client:
        yield client


@pytest.fixture
async def async_redis(valkey: Valkey) -> AsyncIterator[redis.asyncio.Redis]:
    """The same for an event loop."""
    async with valkey.connect_async() as client:
        yield client


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    """A server of the test's own, to be killed and started again."""
    with running_valkey() as server:
        yield server
