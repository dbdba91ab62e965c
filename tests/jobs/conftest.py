"""An API over an emptied queue, and a worker that does what a test says."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.api.scripted_worker import ScriptedWorker
from tests.jobs.receiver import Receiver, receiving
from tests.jobs.servers import api_server
from tests.valkey import Valkey


@pytest.fixture
def worker(valkey: Valkey) -> Iterator[ScriptedWorker]:
    worker = ScriptedWorker(valkey)
    yield worker
    worker.redis.close()


@pytest.fixture(scope="module")
def shared_api(valkey_server: Valkey) -> Iterator[httpx.Client]:
    """One server a module, to spare its start; a module may have another one."""
    with api_server(valkey_server) as client:
        yield client


@pytest.fixture
def api(shared_api: httpx.Client, worker: ScriptedWorker) -> httpx.Client:
    """The module's server, over an emptied queue that a worker has shown itself in."""
    return shared_api


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver
