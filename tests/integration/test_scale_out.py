"""Several workers on one queue: they differ, they come and go, and keys share them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate

import httpx
import pytest
import redis

from api.app import create_app
from api.key_ring import Limits, ring_of
from api.settings import ApiSettings
from tests.api.fakes import serving
from tests.api.scripted_worker import wait_until
from tests.valkey import Valkey
from tests.worker_bench import (
    QUEUE,
    Listener,
    assert_complete,
    listening,
    make_job,
    put,
    retries_left,
    running_worker,
    wait_for_worker,
)
from worker.wire import keys

TEXT = "/v1/completions"


@pytest.fixture
def listener(redis_client: redis.Redis) -> Iterator[Listener]:
    with listening(redis_client) as listener:
        yield listener


@contextmanager
def api(server: Valkey, **settings: object) -> Iterator[httpx.Client]:
    app = create_app(ApiSettings(redis_url=server.url, **settings))  # type: ignore[arg-type]
    with serving(app) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


def body(**fields: object) -> dict[str, object]:
    return {"model": "fake", "prompt": "a", "max_tokens": 8, "seed": 1, **fields}


def wait_for_models(client: httpx.Client, *names: str) -> None:
    def are_there() -> bool:
        data = client.get("/v1/models").json()["data"]
        return {model["id"] for model in data} >= set(names)

    wait_until(are_there, f"{names} are offered")


def test_streams_move_to_another_worker_when_theirs_is_taken_away(
    valkey: Valkey, redis_client: redis.Redis, listener: Listener
) -> None:
    jobs = [make_job(f"job-{number}", max_tokens=120) for number in range(4)]
    names = [job.job_id for job in jobs]
    with running_worker(valkey, "w1", step_s=0.02, drain_timeout=0.3) as leaving:
        put(valkey, *jobs)
        listener.wait_for_deltas(3, *names)
        with running_worker(valkey, "w2", max_batch_size=8):
            wait_for_worker(redis_client, "w2")
            leaving.terminate()
            wait_until(
                lambda: redis_client.hget(keys.worker("w1"), "shutdown_requested_date") is not None,
                "the first worker is shown as stopping",
            )
            put(valkey, make_job("late"))
            listener.wait_for_endings("late")
            assert redis_client.hget(keys.job("late"), "worker_name") == b"w2"
            assert leaving.wait(10) == 0
            assert not redis_client.exists("dfl:worker:w1")
            listener.wait_for_endings(*names)
    for job in jobs:
        assert assert_complete(listener, redis_client, job).attempt == 2
        assert redis_client.hget(keys.job(job.job_id), "worker_name") == b"w2"
        assert retries_left(redis_client, job.job_id) == 2


def test_a_burst_worker_does_what_there_is_and_ends(
    valkey: Valkey, redis_client: redis.Redis, listener: Listener
) -> None:
    jobs = [make_job(f"job-{number}") for number in range(12)]
    put(valkey, *jobs)
    with running_worker(valkey, "w1", max_batch_size=5, burst=True) as process:
        assert process.wait(20) == 0
    listener.wait_for_endings(*(job.job_id for job in jobs))
    for job in jobs:
        assert_complete(listener, redis_client, job)
    assert redis_client.smembers("rq:workers") == set()


def test_every_request_finds_the_worker_that_can_serve_it(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    with (
        api(valkey) as client,
        running_worker(valkey, "plain", modes="ar"),
        running_worker(valkey, "drafting", modes="ar,deer", fingerprint="fake-2"),
        running_worker(valkey, "other", model_name="other/model", modes="ar"),
        ThreadPoolExecutor(16) as pool,
    ):
        wait_for_models(client, "fake", "other/model")
        wait_until(
            lambda: "deer" in client.get("/v1/models/fake").json()["modes"], "deer is offered"
        )
        wanted = [body(mode="deer", seed=number) for number in range(16)]
        wanted += [body(model="other/model", seed=number) for number in range(4)]
        answers = list(pool.map(lambda one: client.post(TEXT, json=one), wanted))
        assert [answer.status_code for answer in answers] == [200] * 20
        ran = Counter(
            redis_client.hget(keys.job(answer.json()["id"]), "worker_name") for answer in answers
        )
        assert ran == {b"drafting": 16, b"other": 4}
        refused = client.post(TEXT, json=body(model="other/model", mode="deer"))
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "mode")
        assert client.post(TEXT, json=body(model="nobody")).status_code == 404


def test_a_model_whose_last_worker_has_gone_is_unavailable_and_comes_back(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    with api(valkey, worker_patience=0) as client:
        with running_worker(valkey, "w1") as process:
            wait_for_models(client, "fake")
            assert client.post(TEXT, json=body()).status_code == 200
            process.terminate()
            assert process.wait(10) == 0
        assert client.get("/v1/models").json()["data"]  # known it stays
        refused = client.post(TEXT, json=body())
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "15")
        with running_worker(valkey, "w2"):
            wait_until(lambda: client.get("/ready").status_code == 200, "a worker is there")
            assert client.post(TEXT, json=body()).status_code == 200


def test_keys_share_the_workers_and_none_has_more_running_than_it_may(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    settings = {
        "api_key": ("one", "two"),
        "max_running_per_key": 2,
        "max_queued_per_key": 6,
        "result_ttl": 100,
    }
    with (
        api(valkey, **settings) as client,
        running_worker(valkey, "w1", step_s=0.02, max_batch_size=3),
        running_worker(valkey, "w2", step_s=0.02, max_batch_size=3),
        ThreadPoolExecutor(24) as pool,
    ):
        client.headers["Authorization"] = "Bearer one"
        wait_for_models(client, "fake")

        def ask(number: int, key: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {key}"}
            return client.post(TEXT, json=body(seed=number, max_tokens=20), headers=headers)

        greedy = [pool.submit(ask, number, "one") for number in range(20)]
        wait_until(
            lambda: redis_client.zcard(f"rq:deferred:{QUEUE}") > 0, "some wait for their key"
        )
        assert ask(0, "two").status_code == 200
        assert not all(one.done() for one in greedy), "it has waited for all of them"
        statuses = Counter(one.result().status_code for one in greedy)
        refused = [one.result() for one in greedy if one.result().status_code == 429]
    assert statuses[200] >= 8 and statuses[200] + statuses[429] == 20
    assert all(answer.json()["error"]["code"] == "key_queue_full" for answer in refused)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    tenant = ring_of(("one",), "", Limits()).tenant_of("Bearer one").name
    assert _most_at_once(redis_client, tenant) == 2


def test_a_key_has_its_places_back_after_the_death_of_a_worker(
    valkey: Valkey, redis_client: redis.Redis, listener: Listener
) -> None:
    jobs = [make_job(f"job-{number}", max_tokens=30) for number in range(8)]
    names = [job.job_id for job in jobs]
    with running_worker(valkey, "w1", step_s=0.02, lease=1.0) as victim:
        put(valkey, *jobs, max_running=2)
        listener.wait_for_deltas(2, "job-0", "job-1")
        with running_worker(valkey, "w2", step_s=0.005, lease=1.0):
            wait_for_worker(redis_client, "w2")
            victim.kill()
            listener.wait_for_endings(*names)
    for job in jobs:
        assert_complete(listener, redis_client, job)
    assert redis_client.zcard("dfl:running:tenant") == 0
    assert redis_client.zcard(f"rq:deferred:{QUEUE}") == 0
    assert _most_at_once(redis_client, "tenant") <= 2


def _most_at_once(client: redis.Redis, tenant: str) -> int:
    """Return how many of a tenant's jobs ran at one moment, as Redis noted their times."""
    changes: list[tuple[float, int]] = []
    for key in client.scan_iter(match=keys.job("*")):
        if client.hget(key, "dfl_tenant") == tenant.encode():
            name = key.decode().removeprefix(keys.job(""))
            ((_, result),) = client.xrevrange(f"{keys.RQ_PREFIX}:results:{name}", count=1)
            changes.append((float(result[b"execution_started_at"]), 1))
            changes.append((float(result[b"execution_ended_at"]), -1))
    assert changes
    return max(accumulate(change for _, change in sorted(changes)))
