"""Two workers' stores: the first one's lease runs out within a test, the second one's does not."""

from __future__ import annotations

import pytest
import redis

from tests.valkey import Valkey
from tests.worker.leases import LEASE_S, LONG_LEASE_S
from worker.job_store import JobStore


@pytest.fixture
def store(redis_client: redis.Redis) -> JobStore:
    return JobStore(redis_client, "w1", lease_s=LEASE_S)


@pytest.fixture
def other(valkey: Valkey) -> JobStore:
    return JobStore(valkey.connect(), "w2", lease_s=LONG_LEASE_S)
