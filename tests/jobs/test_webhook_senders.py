"""Who sends webhooks: however many, whoever is killed, to the right address.

Each test starts its own servers: one that another test left running would send, too.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.webhook_sender import MAX_ATTEMPTS
from tests.api.scripted_worker import ScriptedWorker, wait_until
from tests.jobs.hooks import LOCAL, submit_hooked, wait_for_webhook, write_answer
from tests.jobs.receiver import Receiver, receiving
from tests.jobs.servers import SECRET, api_process, api_server, job, look, submit
from tests.valkey import Valkey
from worker.wire import keys


def test_it_is_given_up_after_the_last_try(
    valkey: Valkey, worker: ScriptedWorker, receiver: Receiver
) -> None:
    receiver.statuses += [500] * 3
    with api_server(valkey, webhook_pause_s=60, **LOCAL) as api:
        # One fails at its last try; the other's senders have all died, so it is not tried again.
        for attempts, num_sent in ((MAX_ATTEMPTS - 1, 2), (MAX_ATTEMPTS, 1)):
            receiver.bodies.clear()
            job_id = submit_hooked(api, receiver)
            write_answer(worker)
            wait_until(lambda id=job_id: _last_try(api, id) is not None, "it is tried once")
            assert look(api, job_id)["webhook"]["state"] == "pending"
            worker.redis.hset(keys.job(job_id), "dfl_hook_attempt", attempts)
            worker.redis.zadd("dfl:webhooks", {job_id: time.time()})
            wait_for_webhook(api, job_id, "failed")
            assert len(receiver.bodies) == num_sent
    assert not worker.redis.exists("dfl:webhooks")


def test_what_a_killed_sender_has_taken_is_sent_by_another(
    valkey: Valkey, worker: ScriptedWorker, receiver: Receiver
) -> None:
    receiver.delay_s = 30.0  # the first sender is killed while it waits
    settings = {"WEBHOOK_NETWORKS": "127.0.0.1", "WEBHOOK_SECRET": SECRET}
    with api_process(valkey, **settings) as (api, process):
        job_id = submit_hooked(api, receiver)
        write_answer(worker)
        wait_until(lambda: len(receiver.bodies) == 1, "the first sender is at it")
        process.kill()
    receiver.delay_s = 0.0
    assert worker.redis.zscore("dfl:webhooks", job_id) > time.time() + 30  # its lease
    worker.redis.zadd("dfl:webhooks", {job_id: time.time()})  # runs out
    with api_server(valkey, **LOCAL) as other:
        assert wait_for_webhook(other, job_id, "delivered")["attempts"] == 2
    assert [headers["webhook-id"] for headers in receiver.headers] == [f"{job_id}-1"] * 2


def test_an_api_killed_before_the_jobs_end_owes_nothing_that_another_would_not_send(
    valkey: Valkey, worker: ScriptedWorker, receiver: Receiver
) -> None:
    settings = {"WEBHOOK_NETWORKS": "127.0.0.1", "WEBHOOK_SECRET": SECRET}
    with api_process(valkey, **settings) as (api, process):
        job_id = submit_hooked(api, receiver)
        process.kill()
    write_answer(worker)  # nobody is there to send it
    assert worker.redis.zscore("dfl:webhooks", job_id) is not None
    with api_server(valkey, **LOCAL) as other:
        wait_for_webhook(other, job_id, "delivered")
    assert len(receiver.bodies) == 1


def test_many_senders_send_each_webhook_once(
    valkey: Valkey, worker: ScriptedWorker, receiver: Receiver
) -> None:
    with (
        api_server(valkey, **LOCAL) as first,
        api_server(valkey, **LOCAL),
        api_server(valkey, **LOCAL),
    ):
        job_ids = [submit_hooked(first, receiver) for _ in range(30)]
        for job_id in job_ids:
            first.delete(f"/v1/jobs/{job_id}")
        for job_id in job_ids:
            wait_for_webhook(first, job_id, "delivered")
    told = sorted(message["data"]["id"] for message in receiver.messages)
    assert told == sorted(job_ids)


def test_a_job_that_owes_a_webhook_stays_until_the_last_try(
    valkey: Valkey, worker: ScriptedWorker, receiver: Receiver
) -> None:
    with api_server(valkey, result_ttl=5, **LOCAL) as api:
        kept = submit_hooked(api, receiver)
        write_answer(worker)
        plain = submit(api, job())["id"]
        write_answer(worker)
    assert worker.redis.ttl(keys.job(kept)) > 8 * 3600 < worker.redis.ttl(keys.log(kept))
    assert worker.redis.ttl(keys.job(plain)) <= 5


def test_a_name_goes_to_its_address_and_the_certificate_is_the_names(
    valkey: Valkey, worker: ScriptedWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make_certificate(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    with receiving(context) as receiver, api_server(valkey, **LOCAL, webhook_pause_s=60) as api:
        for host, state in (("localhost", "delivered"), ("127.0.0.1", "pending")):
            webhook = {"url": f"https://{host}:{receiver.port}/hook"}
            job_id = submit(api, job(webhook=webhook))["id"]
            api.delete(f"/v1/jobs/{job_id}")
            wait_until(lambda id=job_id: _last_try(api, id) is not None, "it is tried")
            assert look(api, job_id)["webhook"]["state"] == state
        assert look(api, job_id)["webhook"]["last_error"] == "ConnectError"
        (headers,) = receiver.headers
        assert headers["host"] == f"localhost:{receiver.port}"


def test_a_name_that_changes_its_address_after_the_check_changes_nothing(
    valkey: Valkey, worker: ScriptedWorker, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, answers = socket.getaddrinfo, ["127.0.0.1"]

    def rebinding(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "rebinding.test":
            return look_up(host, port, *args, **kwargs)
        # Allowed when it is checked; whoever asks once more is led to where nobody listens.
        address = answers.pop() if answers else "127.0.0.99"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    with api_server(valkey, **LOCAL) as api:
        webhook = {"url": f"http://rebinding.test:{receiver.port}/hook"}
        job_id = submit(api, job(webhook=webhook))["id"]
        api.delete(f"/v1/jobs/{job_id}")
        assert wait_for_webhook(api, job_id, "delivered")["attempts"] == 1
    assert receiver.headers[0]["host"] == f"rebinding.test:{receiver.port}"


def test_where_it_must_not_go_it_is_not_sent_and_not_tried_again(
    valkey: Valkey, worker: ScriptedWorker, receiver: Receiver
) -> None:
    with api_server(valkey, webhook_secret=SECRET) as api:
        webhook = {"url": f"https://localhost:{receiver.port}/hook"}  # a name: not known before
        job_id = submit(api, job(webhook=webhook))["id"]
        api.delete(f"/v1/jobs/{job_id}")
        hook = wait_for_webhook(api, job_id, "failed")
    assert "not on the public internet" in hook["last_error"]
    assert not receiver.bodies and not worker.redis.exists("dfl:webhooks")


def _last_try(api: httpx.Client, job_id: str) -> Any:
    return look(api, job_id)["webhook"]["last_attempt_at"]


def _make_certificate(folder: Path, name: str) -> None:
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-days", "1", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}",
        "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
