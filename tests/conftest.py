"""Fixtures for every test: a real Valkey, shared by a run and empty for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.valkey import Valkey, running_valkey


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Valkey]:
    """One server a run; on TCP, too, for tools that know no unix sockets."""
    with running_valkey(tcp=True) as server:
        yield server


@pytest.fixture
def valkey(valkey_server: Valkey) -> Valkey:
    """The run's server, emptied."""
    with valkey_server.connect() as client:
        client.flushall()
        client.script_flush()
        client.config_resetstat()
    return valkey_server


@pytest.fixture
def redis_client(valkey: Valkey) -> Iterator[redis.Redis]:
    """A connection to the emptied server."""
    with valkey.connect() as client:
        yield client
