"""Clients that leave and jobs that are cancelled, at every moment of a job's life."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import redis

from api.app import create_app
from api.settings import ApiSettings
from tests.api.fakes import serving
from tests.chaos.verdict import audit
from tests.stack import (
    COMPLETIONS,
    Stream,
    attempts,
    body_of,
    job_ids,
    undisturbed,
    wait_for_status,
    wait_until_ready,
)
from tests.valkey import Valkey
from tests.worker_bench import listening, make_job, put, running_worker, status_of
from worker.wire import codec, keys, lua, reasons
from worker.wire.messages import Accepted, Delta

ENDED = {"finished", "canceled"}


@pytest.fixture
def url(valkey: Valkey) -> Iterator[str]:
    settings = ApiSettings(redis_url=valkey.url, accept_patience_s=0.05, sweep_s=0.2)
    with serving(create_app(settings)) as url:
        yield url


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_gone_while_its_job_is_queued_takes_it_along(
    url: str, valkey: Valkey, redis_client: redis.Redis, stream: bool
) -> None:
    with running_worker(valkey, "w1"):
        wait_until_ready(url)
    with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=0.5) as client:
        _post_and_wait(client, url, body_of("gone", 5, stream=stream))
    (job_id,) = job_ids(redis_client)
    wait_for_status(redis_client, job_id, "canceled")
    with running_worker(valkey, "w2"):
        Stream(url, body_of("next", 5, stream=True)).assert_whole(undisturbed("next", 5))
    assert attempts(redis_client, job_id) == 0
    assert audit(redis_client) == []


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_gone_while_its_job_runs_leaves_its_place_to_the_next(
    url: str, valkey: Valkey, redis_client: redis.Redis, stream: bool
) -> None:
    with running_worker(valkey, "w1", step_s=0.01, max_batch_size=1):
        wait_until_ready(url)
        body = body_of("gone", 3000, stream=stream)
        if stream:
            Stream(url, body, leaves_after=3).join()
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url + COMPLETIONS, json=body, timeout=0.5)
        (job_id,) = job_ids(redis_client)
        Stream(url, body_of("next", 5, stream=True)).assert_whole(undisturbed("next", 5))
        wait_for_status(redis_client, job_id, "canceled")
        assert redis_client.scard("rq:worker:w1:executions") == 0
    assert attempts(redis_client, job_id) == 1
    assert audit(redis_client) == []


def test_clients_gone_while_their_jobs_finish_leave_one_ending_each(
    url: str, valkey: Valkey, redis_client: redis.Redis
) -> None:
    with running_worker(valkey, "w1", step_s=0.002, max_batch_size=16):
        wait_until_ready(url)
        # With the last tokens, and, of every fourth, long before them.
        clients = [
            Stream(url, body_of(f"{number}", 8 if number % 4 else 500, stream=True), 5 + number % 4)
            for number in range(32)
        ]
        for client in clients:
            client.join()
            whole = undisturbed(str(client.body["prompt"]), client.body["max_tokens"])
            assert whole.startswith(client.text)
        for client in clients:
            wait_for_status(redis_client, client.job_id, *ENDED)
    _assert_one_ending_each(redis_client, [client.job_id for client in clients])


def test_cancels_that_race_the_finish_leave_one_ending_each(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    # Job 9 * k + n is cancelled as soon as n of its 8 deltas are heard, and then once more.
    moments = {f"job-{number}": number % 9 for number in range(81)}
    put(valkey, *(make_job(name, max_tokens=8) for name in moments))
    with (
        listening(redis_client) as listener,
        running_worker(valkey, "w1", step_s=0.002, max_batch_size=16, stream_interval=0),
    ):

        def cancel_what_is_due() -> bool:
            for name, moment in list(moments.items()):
                if len(listener.deltas(name)) >= moment:
                    del moments[name]
                    for _ in range(2):
                        _cancel(redis_client, name)
            return not moments

        names = list(moments)
        listener.wait_until(cancel_what_is_due, "all are cancelled")
        listener.wait_for_endings(*names)
        for name in names:
            words = [one for one in listener.events[name] if not isinstance(one, Delta | Accepted)]
            assert len(words) == 1, f"the API heard {words}"
    _assert_one_ending_each(redis_client, names)


def _cancel(client: redis.Redis, job_id: str) -> None:
    why = {"cancelled": reasons.CANCELLED, "frame_head": codec.for_lua("")}
    lua.call(client, "cancel", {"id": job_id, **why})


def _assert_one_ending_each(client: redis.Redis, names: list[str]) -> None:
    statuses = {name: status_of(client, name) for name in names}
    assert set(statuses.values()) == ENDED, "the test must see both endings"
    for name, status in statuses.items():
        assert client.xlen(f"rq:results:{name}") == (status == "finished")
    assert client.zcard(f"rq:wip:{keys.queue_name('fake')}") == 0
    assert audit(client) == []


def _post_and_wait(client: httpx.Client, url: str, body: dict[str, object]) -> None:
    """Post, and read whatever comes, until the client's patience ends."""
    with client.stream("POST", url + COMPLETIONS, json=body) as response:
        response.read()
