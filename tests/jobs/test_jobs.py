"""Submit, poll, cancel and list: jobs that live without their client."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import msgspec
import pytest
from rq import Queue
from rq.job import Job

from tests.api.scripted_worker import ScriptedWorker, wait_until
from tests.jobs.servers import CHAT, TEXT, api_server, chat, job, look, submit, wait_for_status
from tests.valkey import Valkey
from tests.worker_bench import running_worker
from worker.serializer import RestrictedSerializer
from worker.wire import codec, keys

HEADERS = {"a": {"Authorization": "Bearer a"}, "b": {"Authorization": "Bearer b"}}


def _write(worker: ScriptedWorker, text: str = "hello") -> None:
    worker.claim()
    worker.accept()
    worker.say(text)
    worker.finish()


def test_a_job_is_taken_at_once_and_tells_where_it_stands(
    api: httpx.Client, worker: ScriptedWorker
) -> None:
    response = api.post("/v1/jobs", json=job(chat(stream=True), custom_id="c", metadata={"k": "v"}))
    assert response.status_code == 202
    body = response.json()
    assert response.headers["location"] == f"/v1/jobs/{body['id']}" == body["links"]["self"]
    assert response.headers["x-job-id"] == body["id"]
    assert (body["status"], body["position"], body["url"]) == ("queued", 0, CHAT)
    assert (body["custom_id"], body["metadata"]) == ("c", {"k": "v"})
    assert body["response"] is None and body["estimated_start_at"] is None
    worker.claim()
    worker.accept()
    worker.say("hel")
    running = look(api, body["id"])
    assert (running["status"], running["position"]) == ("running", None)
    progress = {"prompt_tokens": 5, "completion_tokens": 3, "max_tokens": None}
    assert running["progress"] == progress
    assert running["started_at"] is not None and running["ended_at"] is None


def test_the_response_is_what_the_endpoint_itself_would_have_answered(
    api: httpx.Client, worker: ScriptedWorker, valkey: Valkey
) -> None:
    body = {"model": "tiny", "prompt": "x", "echo": True, "seed": 1, "return_token_ids": True}
    made = submit(api, job(body, url=TEXT))
    _write(worker)
    whole = wait_for_status(api, made["id"], "finished")["response"]
    assert whole["status_code"] == 200
    choice = whole["body"]["choices"][0]
    assert (choice["text"], choice["token_ids"]) == ("hello", [0, 1, 2, 3, 4])
    assert whole["body"]["id"] == made["id"] and whole["body"]["system_fingerprint"] == "fp-1"
    assert whole["body"]["usage"]["total_tokens"] == 10
    with api_server(valkey) as other:  # a process that has never heard of the job
        assert look(other, made["id"])["response"] == whole


def test_a_line_of_openais_batch_files_is_a_job(api: httpx.Client) -> None:
    line = {"custom_id": "request-1", "method": "POST", "url": CHAT, "body": chat(max_tokens=7)}
    made = submit(api, line)
    assert made["custom_id"] == "request-1" and made["progress"]["max_tokens"] == 7


@pytest.mark.parametrize(
    ("request_body", "param"),
    [
        (job(chat(temperature=3)), "body.temperature"),
        (job(chat(nonsense=1)), "body.nonsense"),
        (job(chat(max_queue_time=0)), "body.max_queue_time"),
        (job(chat(model="other")), "body.model"),
        (job([]), "body"),
        (job(custom_id="x" * 513), "custom_id"),
        (job(url="/v1/embeddings"), "url"),
        (job(method="GET"), "method"),
        (job(surprise=1), "surprise"),
        (job(metadata={str(n): "" for n in range(17)}), "metadata"),
        ({"url": CHAT}, "body"),
    ],
)
def test_what_is_wrong_is_said_at_once_and_makes_no_job(
    api: httpx.Client, worker: ScriptedWorker, request_body: dict[str, object], param: str | None
) -> None:
    response = api.post("/v1/jobs", json=request_body)
    assert response.status_code in (400, 404)
    assert response.json()["error"]["param"] == param
    assert not list(worker.redis.scan_iter("rq:job:*"))


def test_a_workers_refusal_is_the_response(api: httpx.Client, worker: ScriptedWorker) -> None:
    made = submit(api, job())
    worker.claim()
    worker.refuse()
    failed = wait_for_status(api, made["id"], "failed")
    assert failed["response"]["status_code"] == 400
    error = failed["response"]["body"]["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


def test_a_job_is_cancelled_while_it_waits_and_while_it_runs(
    api: httpx.Client, worker: ScriptedWorker
) -> None:
    waiting = submit(api, job())
    cancelled = api.delete(f"/v1/jobs/{waiting['id']}").json()
    assert cancelled["status"] == "canceled"
    assert cancelled["response"]["body"]["error"]["code"] == "cancelled"
    running = submit(api, job())
    worker.claim()
    assert api.delete(f"/v1/jobs/{running['id']}").json()["status"] == "running"
    assert worker.beat() == {running["id"]}
    worker.finish()  # it was faster
    assert api.delete(f"/v1/jobs/{running['id']}").json()["status"] == "finished"


def test_another_tenants_job_is_not_there(valkey: Valkey, worker: ScriptedWorker) -> None:
    with api_server(valkey, api_key=("a", "b")) as api:
        response = api.post("/v1/jobs", json=job(), headers=HEADERS["a"])
        path = f"/v1/jobs/{response.json()['id']}"
        answers = [
            api.request(method, path + end, headers=HEADERS["b"])
            for method, end in (("GET", ""), ("DELETE", ""), ("GET", "/events"))
        ]
        unknown = api.get("/v1/jobs/chatcmpl-none", headers=HEADERS["b"])
        assert [answer.status_code for answer in [*answers, unknown]] == [404] * 4
        assert {answer.json()["error"]["code"] for answer in answers} == {"job_not_found"}
        assert api.get("/v1/jobs", headers=HEADERS["b"]).json()["data"] == []
        assert api.get(path, headers=HEADERS["a"]).json()["status"] == "queued"
        assert api.get(path).status_code == 401


def test_jobs_are_listed_page_by_page_the_newest_first(
    api: httpx.Client, worker: ScriptedWorker
) -> None:
    made = [submit(api, job(custom_id=str(number)))["id"] for number in range(5)]
    worker.redis.delete(keys.job(made[2]))  # forgotten, as after its TTL
    first = api.get("/v1/jobs", params={"limit": 2}).json()
    assert [one["id"] for one in first["data"]] == [made[4], made[3]]
    assert first["has_more"] and first["last_id"] == made[3]
    second = api.get("/v1/jobs", params={"limit": 2, "after": made[3]}).json()
    assert [one["id"] for one in second["data"]] == [made[1], made[0]]
    assert not second["has_more"]
    assert api.get("/v1/jobs", params={"after": "nobody"}).status_code == 400
    assert api.get("/v1/jobs", params={"limit": 101}).status_code == 400
    index = "dfl:jobs:anonymous"
    assert worker.redis.ttl(index) > 0


def test_a_directly_asked_job_can_be_looked_at_by_its_id(
    api: httpx.Client, worker: ScriptedWorker
) -> None:
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(api.post, CHAT, json=chat())
        _write(worker)
        answer = answering.result(10)
    seen = look(api, answer.headers["x-job-id"])
    assert seen["response"] == {"status_code": 200, "body": answer.json()}
    assert api.get("/v1/jobs").json()["data"] == []  # the list is of what was submitted


def test_what_an_operator_requeues_runs_anew_though_its_client_and_its_time_are_gone(
    valkey: Valkey, worker: ScriptedWorker
) -> None:
    with api_server(valkey, job_timeout=0.4) as api:
        made = submit(api, job())
        expired = wait_for_status(api, made["id"], "expired")
        assert expired["response"]["status_code"] == 504
        Job.fetch(made["id"], connection=worker.redis, serializer=RestrictedSerializer).requeue()
        assert look(api, made["id"])["status"] == "queued"
        claim = worker.claim()
        assert claim.deadline is not None  # its whole time once more
        worker.accept()
        worker.say("again")
        worker.finish()
        done = look(api, made["id"])
        assert done["response"]["body"]["choices"][0]["message"]["content"] == "again"


def test_a_worker_runs_what_is_requeued_though_it_was_asked_for_long_ago(valkey: Valkey) -> None:
    body = {"model": "fake", "prompt": "x", "max_tokens": 5}
    with api_server(valkey, job_timeout=2.0) as api, valkey.connect() as client:
        with running_worker(valkey, "w1"):
            wait_until(lambda: api.get("/ready").status_code == 200, "a worker is there")
        made = submit(api, job(body, url=TEXT))
        wait_for_status(api, made["id"], "expired")
        Job.fetch(made["id"], connection=client, serializer=RestrictedSerializer).requeue()
        with running_worker(valkey, "w2"):
            done = wait_for_status(api, made["id"], "finished")
    assert done["progress"]["completion_tokens"] == 5


def test_rqs_own_cancel_shows(api: httpx.Client, worker: ScriptedWorker) -> None:
    made = submit(api, job())
    Job.fetch(made["id"], connection=worker.redis, serializer=RestrictedSerializer).cancel()
    cancelled = look(api, made["id"])
    assert (cancelled["status"], cancelled["response"]["status_code"]) == ("canceled", 499)
    queue = Queue("tiny.default", connection=worker.redis, serializer=RestrictedSerializer)
    assert queue.count == 0


def test_the_openapi_page_shows_a_job(api: httpx.Client) -> None:
    page = api.get("/schema/openapi.json").json()
    paths = page["paths"]
    post = paths["/v1/jobs"]["post"]
    content = post["requestBody"]["content"]["application/json"]
    assert set(content["schema"]["required"]) == {"url", "body"}
    assert submit(api, content["example"] | {"webhook": None})["custom_id"] == "row-17"
    example = post["responses"]["202"]["content"]["application/json"]["example"]
    assert set(example) <= set(submit(api, job()))
    assert set(paths["/v1/jobs/{job_id}"]) == {"get", "delete"}
    assert "get" in paths["/v1/jobs/{job_id}/events"]


def test_a_response_is_a_job_too(api: httpx.Client, worker: ScriptedWorker) -> None:
    made = submit(api, job({"model": "tiny", "input": "x", "stream": True}, url="/v1/responses"))
    _write(worker)
    done = wait_for_status(api, made["id"], "finished")
    assert done["url"] == "/v1/responses" and done["response"]["body"]["object"] == "response"
    assert done["response"]["body"]["output"][0]["content"][0]["text"] == "hello"
    whole = api.get(f"/v1/jobs/{made['id']}/events").text
    rest = api.get(f"/v1/jobs/{made['id']}/events", headers={"Last-Event-ID": "3"}).text
    assert "event: response.created" in whole and "event: response.completed" in rest
    assert whole.endswith(rest) and "id: 3\n" not in rest and "id: 4\n" in rest


def test_a_response_was_completed_when_its_job_ended(
    api: httpx.Client, worker: ScriptedWorker
) -> None:
    body = {"model": "tiny", "input": "x"}
    job_id = submit(api, {"url": "/v1/responses", "body": body})["id"]
    worker.claim()
    worker.accept()
    worker.say("hello")
    worker.finish()
    worker.redis.hset(keys.job(job_id), "ended_at", "2020-01-01T00:00:00.000000Z")
    ended_at = 1577836800
    assert api.get(f"/v1/responses/{job_id}").json()["completed_at"] == ended_at
    assert look(api, job_id)["response"]["body"]["completed_at"] == ended_at


@pytest.mark.parametrize("name", ["resp_x", "batch_x-1"])
def test_a_job_for_responses_streams_their_events_whatever_its_name(
    api: httpx.Client, worker: ScriptedWorker, name: str
) -> None:
    body = {"model": "tiny", "input": "x"}
    made = submit(api, {"url": "/v1/responses", "body": body})["id"]
    worker.claim()
    worker.accept()
    worker.say("hello")
    worker.finish()
    worker.redis.rename(keys.job(made), keys.job(name))
    worker.redis.rename(keys.log(made), keys.log(name))
    packed = worker.redis.hget(keys.job(name), "dfl")
    renamed = msgspec.structs.replace(codec.decode_job(packed), job_id=name)
    worker.redis.hset(keys.job(name), "dfl", codec.encode(renamed))
    assert "event: response.completed" in api.get(f"/v1/jobs/{name}/events").text
