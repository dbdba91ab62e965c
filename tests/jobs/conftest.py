"""An API over an emptied queue, and a worker that does what a test says."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.api.scripted_worker import ScriptedWorker
from tests.jobs.servers import api_server
from tests.valkey import Valkey


@pytest.fixture
def worker(valkey: Valkey) -> Iterator[ScriptedWorker]:
    worker = ScriptedWorker(valkey)
    yield worker
    worker.redis.close()


@pytest.fixture
def api(valkey: Valkey, worker: ScriptedWorker) -> Iterator[httpx.Client]:
    with api_server(valkey) as client:
        yield client
