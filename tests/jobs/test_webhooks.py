"""Webhooks: signed, for every ending, again until they arrive."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from rq.job import Job

from tests.api.scripted_worker import ScriptedWorker, wait_until
from tests.jobs.hooks import LOCAL, submit_hooked, wait_for_webhook, write_answer
from tests.jobs.receiver import Receiver
from tests.jobs.servers import SECRET, api_server, look
from tests.valkey import Valkey
from worker.job_store import JobStore
from worker.serializer import RestrictedSerializer

KEY = base64.b64encode(b"k" * 32).decode()


@pytest.fixture(scope="module")
def shared_api(valkey_server: Valkey) -> Iterator[httpx.Client]:
    with api_server(valkey_server, webhook_pause_s=0.05, **LOCAL) as client:
        yield client


def _is_signed(headers: dict[str, str], body: bytes, key: bytes) -> bool:
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()


@pytest.mark.parametrize(("secret", "key"), [(None, SECRET.encode()), (f"whsec_{KEY}", b"k" * 32)])
def test_the_end_is_told_with_the_answer_and_a_signature(
    api: httpx.Client,
    worker: ScriptedWorker,
    receiver: Receiver,
    secret: str | None,
    key: bytes,
) -> None:
    job_id = submit_hooked(api, receiver, secret)
    assert look(api, job_id)["webhook"]["state"] == "waiting"
    write_answer(worker)
    hook = wait_for_webhook(api, job_id, "delivered")
    assert (hook["attempts"], hook["last_status_code"], hook["next_attempt_at"]) == (1, 204, None)
    (headers,), (message,), (body,) = receiver.headers, receiver.messages, receiver.bodies
    assert message["type"] == "job.finished"
    assert message["data"]["response"] == look(api, job_id)["response"]
    assert headers["content-type"] == "application/json"
    assert headers["webhook-id"] == f"{job_id}-1"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    assert _is_signed(headers, body, key) and not _is_signed(headers, body + b" ", key)
    assert KEY not in body.decode() and SECRET not in body.decode()
    assert not worker.redis.exists("dfl:webhooks")


def _fail(api: httpx.Client, worker: ScriptedWorker, job_id: str) -> None:
    worker.claim()
    worker.refuse()


def _cancel_waiting(api: httpx.Client, worker: ScriptedWorker, job_id: str) -> None:
    api.delete(f"/v1/jobs/{job_id}")


def _let_it_expire(api: httpx.Client, worker: ScriptedWorker, job_id: str) -> None:
    wait_until(lambda: look(api, job_id)["status"] == "expired", "it expires")


def _kill_its_worker(api: httpx.Client, worker: ScriptedWorker, job_id: str) -> None:
    supervisor = JobStore(worker.redis, "supervisor")
    for _ in range(3):  # as often as it is tried
        worker.claim()
        supervisor.reap_worker("scripted")


@pytest.mark.parametrize(
    ("end", "status", "body"),
    [
        (_fail, "failed", {}),
        (_cancel_waiting, "canceled", {}),
        (_let_it_expire, "expired", {"max_queue_time": 0.1}),
        (_kill_its_worker, "failed", {}),
    ],
)
def test_every_ending_is_told(
    api: httpx.Client, worker: ScriptedWorker, receiver: Receiver, end: Any, status: str, body: Any
) -> None:
    job_id = submit_hooked(api, receiver, **body)
    end(api, worker, job_id)
    wait_for_webhook(api, job_id, "delivered")
    (message,) = receiver.messages
    assert message["type"] == f"job.{status}" and message["data"]["id"] == job_id
    assert message["data"]["response"]["status_code"] >= 400


def test_it_is_sent_again_until_it_arrives_and_no_redirect_is_followed(
    api: httpx.Client, worker: ScriptedWorker, receiver: Receiver
) -> None:
    receiver.statuses += [500, 302]
    job_id = submit_hooked(api, receiver)
    write_answer(worker)
    hook = wait_for_webhook(api, job_id, "delivered")
    assert hook["attempts"] == 3
    assert len({headers["webhook-id"] for headers in receiver.headers}) == 1
    assert len(set(receiver.bodies)) == 3  # each says how far the delivery is
    pauses = [body["data"]["webhook"]["last_status_code"] for body in receiver.messages]
    assert pauses == [None, 500, 302]


def test_it_is_given_up_where_the_receiver_wants_no_more(
    api: httpx.Client, worker: ScriptedWorker, receiver: Receiver
) -> None:
    receiver.statuses += [410]
    job_id = submit_hooked(api, receiver)
    write_answer(worker)
    assert wait_for_webhook(api, job_id, "failed")["attempts"] == 1
    assert not worker.redis.exists("dfl:webhooks")


def test_a_requeued_job_tells_its_second_end_under_another_id(
    api: httpx.Client, worker: ScriptedWorker, receiver: Receiver
) -> None:
    job_id = submit_hooked(api, receiver)
    worker.claim()
    worker.refuse()
    wait_for_webhook(api, job_id, "delivered")
    Job.fetch(job_id, connection=worker.redis, serializer=RestrictedSerializer).requeue()
    write_answer(worker)
    wait_until(lambda: len(receiver.bodies) == 2, "both are told")
    assert [message["type"] for message in receiver.messages] == ["job.failed", "job.finished"]
    assert [headers["webhook-id"][-2:] for headers in receiver.headers] == ["-1", "-2"]
