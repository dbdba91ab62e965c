"""One key, one job: in flight, after its end, through any process, however many ask at once."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.api.scripted_worker import ScriptedWorker, wait_until
from tests.jobs.servers import CHAT, api_process, api_server, chat, job, submit
from tests.valkey import Valkey
from tests.worker_bench import running_worker

KEY = {"Idempotency-Key": "k1"}


def _num_jobs(worker: ScriptedWorker) -> int:
    return len(list(worker.redis.scan_iter("rq:job:*")))


def _work(worker: ScriptedWorker, text: str = "hello") -> None:
    worker.claim()
    worker.accept()
    worker.say(text)
    worker.finish()


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_same_request_sent_again_joins_the_running_job_and_later_gets_its_answer(
    api: httpx.Client, worker: ScriptedWorker, valkey: Valkey, is_stream: bool
) -> None:
    body = chat(stream=is_stream, seed=1)
    with api_server(valkey) as other, ThreadPoolExecutor(2) as pool:
        first = pool.submit(api.post, CHAT, json=body, headers=KEY)
        worker.claim()
        worker.accept()
        worker.say("hel")
        # The same JSON, written otherwise.
        text = json.dumps(dict(reversed(body.items())), indent=1)
        headers = {**KEY, "Content-Type": "application/json"}
        second = pool.submit(other.post, CHAT, content=text, headers=headers)
        wait_until(lambda: b"," in worker.redis.hget(_only_job(worker), "dfl_api"), "it joins")
        worker.say("lo")
        worker.finish()
        answers = [first.result(10), second.result(10), other.post(CHAT, json=body, headers=KEY)]
        rest = other.post(CHAT, json=body, headers={**KEY, "Last-Event-ID": "2"})
    if is_stream:
        assert "id: 2\n" in answers[0].text
        assert rest.text == answers[2].text.partition("id: 2\n")[2].partition("\n\n")[2]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({_without_comments(answer) for answer in answers}) == 1
    assert len({answer.headers["x-job-id"] for answer in answers}) == 1
    replayed = [answer.headers.get("idempotent-replayed") for answer in answers]
    assert replayed == [None, "true", "true"]


def test_a_key_with_another_request_is_refused(api: httpx.Client, worker: ScriptedWorker) -> None:
    submit(api, job(), **KEY)
    for path, body in [("/v1/jobs", job(custom_id="x")), (CHAT, chat()), (CHAT, chat(seed=1))]:
        response = api.post(path, json=body, headers=KEY)
        assert response.status_code == 422
        assert response.json()["error"]["code"] == "idempotency_key_reused"
    assert _num_jobs(worker) == 1


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "a\tb"])
def test_a_key_that_is_none_is_refused(api: httpx.Client, worker: ScriptedWorker, key: str) -> None:
    response = api.post(CHAT, json=chat(), headers={"Idempotency-Key": key})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_header")


def test_a_key_is_its_tenants_own(valkey: Valkey, worker: ScriptedWorker) -> None:
    with api_server(valkey, api_key=("a", "b")) as api:
        made = [
            submit(api, job(), Authorization=f"Bearer {tenant}", **KEY)["id"]
            for tenant in ("a", "b", "a")
        ]
    assert made[0] == made[2] != made[1]


def test_a_key_lives_no_longer_than_its_job(api: httpx.Client, worker: ScriptedWorker) -> None:
    first = submit(api, job(), **KEY)["id"]
    (note,) = worker.redis.keys("dfl:idempotency:*")
    assert worker.redis.ttl(note) > 0
    worker.redis.delete(f"rq:job:{first}")
    assert submit(api, job(), **KEY)["id"] != first


def test_who_sends_a_key_may_lose_the_connection(api: httpx.Client, worker: ScriptedWorker) -> None:
    with pytest.raises(httpx.ReadTimeout):
        api.post(CHAT, json=chat(), headers=KEY, timeout=0.3)
    time.sleep(0.4)  # the API has noticed
    worker.claim()
    worker.accept()
    assert worker.beat() == set()
    worker.say("hello")
    worker.finish()
    answer = api.post(CHAT, json=chat(), headers=KEY).json()
    assert answer["choices"][0]["message"]["content"] == "hello"


def test_a_refusal_is_not_remembered(valkey: Valkey, worker: ScriptedWorker) -> None:
    with api_server(valkey, max_queue_size=1) as api:
        first = submit(api, job())
        assert api.post("/v1/jobs", json=job(), headers=KEY).status_code == 429
        api.delete(f"/v1/jobs/{first['id']}")
        assert submit(api, job(), **KEY)["status"] == "queued"


def test_of_many_racing_through_two_processes_one_makes_the_job(valkey: Valkey) -> None:
    body = {"model": "fake", "prompt": "x", "max_tokens": 20}
    with (
        api_process(valkey) as (first, _),
        api_process(valkey) as (second, _),
        running_worker(valkey, "w1"),
        ThreadPoolExecutor(16) as pool,
    ):
        wait_until(lambda: first.get("/ready").status_code == 200, "a worker is there")
        for number in range(5):
            headers = {"Idempotency-Key": str(number)}
            racers = [
                pool.submit(api.post, "/v1/completions", json=body, headers=headers)
                for api in (first, second) * 8
            ]
            answers = [racer.result(20) for racer in racers]
            assert {answer.status_code for answer in answers} == {200}
            assert len({answer.text for answer in answers}) == 1
            assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    with valkey.connect() as client:
        assert len(list(client.scan_iter("rq:job:*"))) == 5


def _only_job(worker: ScriptedWorker) -> str:
    (key,) = worker.redis.scan_iter("rq:job:*")
    return str(key.decode())


def _without_comments(answer: httpx.Response) -> str:
    return "\n".join(line for line in answer.text.splitlines() if line and line[0] != ":")
