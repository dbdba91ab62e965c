"""What a container's health check says of the part in it."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest
import redis

from tests.api.fakes import MODEL, FakeGateway, served
from tests.valkey import Valkey
from worker.alive import main
from worker.job_store import JobStore
from worker.wire.messages import WorkerInfo


def _beat(client: redis.Redis, name: str) -> None:
    JobStore(client, name).beat([], WorkerInfo(name, MODEL, 4))


def test_a_worker_lives_while_its_heartbeat_is_there(
    valkey: Valkey, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VDIFF_REDIS_URL", valkey.url)
    assert main(["worker"]) == 1
    _beat(redis_client, f"{socket.gethostname()}-0123abcd")
    assert main(["worker"]) == 0


def test_another_hosts_heartbeat_says_nothing_of_this_one(
    valkey: Valkey, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VDIFF_REDIS_URL", valkey.url)
    _beat(redis_client, f"{socket.gethostname()}-0123abcd-0123abcd")
    _beat(redis_client, "other-0123abcd")
    assert main(["worker"]) == 1


def test_a_worker_is_not_blamed_for_a_redis_that_is_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VDIFF_REDIS_URL", "unix:///nowhere/s")
    assert main(["worker"]) == 0
    assert "nothing is known" in capsys.readouterr().err


def test_an_api_lives_while_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(FakeGateway(live=[])) as url:
        monkeypatch.setenv("VDIFF_PORT", str(urlsplit(url).port))
        assert main(["api"]) == 0
    assert main(["api"]) == 1


def test_without_a_part_either_will_do(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDIFF_REDIS_URL", valkey.url)
    with served(FakeGateway()) as url:
        monkeypatch.setenv("VDIFF_PORT", str(urlsplit(url).port))
        assert main([]) == 0
    assert main([]) == 1
