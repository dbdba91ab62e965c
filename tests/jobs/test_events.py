"""Streams of jobs: the same chunks from any process, from the start or after any event."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from rq.job import Job

from tests.api.scripted_worker import ScriptedWorker, wait_until
from tests.jobs.servers import (
    CHAT,
    TEXT,
    api_process,
    api_server,
    chat,
    job,
    look,
    submit,
    wait_for_status,
)
from tests.valkey import Valkey
from tests.worker_bench import running_worker
from worker.serializer import RestrictedSerializer

LEAVING_S = 0.4  # enough for an API to notice that a client has gone
STREAM = chat(stream=True, stream_options={"include_usage": True})


def _lines(text: str) -> list[str]:
    """Return a stream's events without its comments."""
    return [block for block in text.split("\n\n") if block and not block.startswith(":")]


def _ids(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"^id: (\d+)$", text, re.MULTILINE)]


def _events(api: httpx.Client, job_id: str, last: int | None = None) -> str:
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    response = api.get(f"/v1/jobs/{job_id}/events", headers=headers)
    assert response.status_code == 200, response.text
    return response.text


@contextmanager
def _reading(api: httpx.Client, job_id: str) -> Iterator[Future[str]]:
    """Read a job's events in the background; the reader is there once the API has followed."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(_events, api, job_id)


def test_a_jobs_events_are_the_chunks_of_the_endpoint_itself(
    api: httpx.Client, worker: ScriptedWorker
) -> None:
    with ThreadPoolExecutor(1) as pool:
        direct = pool.submit(api.post, CHAT, json=STREAM)
        worker.claim()
        worker.accept()
        worker.say("hello")
        worker.finish()
        response = direct.result()
    job_id = response.headers["x-job-id"]
    again = _events(api, job_id)
    assert _lines(again) == _lines(response.text)
    assert _ids(again) == [0, 1, 2, 3, 4] and again.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("last", [0, 2, 4])
def test_a_stream_goes_on_after_the_last_event_that_was_seen(
    api: httpx.Client, worker: ScriptedWorker, valkey: Valkey, last: int
) -> None:
    body = {"model": "tiny", "prompt": "x", "stream": True, "logprobs": 1}
    made = submit(api, job(body, url=TEXT))
    worker.claim()
    worker.accept()
    worker.say("hello")
    worker.finish()
    whole = _events(api, made["id"])
    with api_server(valkey) as other:
        rest = _events(other, made["id"], last)
        resumes = 'dfastllm_stream_resumes_total{model_name="tiny"} 1.0'
        assert resumes in other.get("/metrics").text.splitlines()
    assert "dfastllm_stream_resumes_total{" not in api.get("/metrics").text
    # The offsets of the log-probabilities, too: they count what was before.
    assert _lines(rest) == _lines(whole)[last + 1 :]


def test_two_processes_follow_a_running_job_from_where_they_come_in(
    api: httpx.Client, worker: ScriptedWorker, valkey: Valkey
) -> None:
    made = submit(api, job(STREAM))
    # No sweeps: what comes after the following is heard, not found.
    with api_server(valkey, sweep_s=600) as other, ThreadPoolExecutor(3) as pool:
        early = pool.submit(_events, api, made["id"])  # while it is queued
        wait_until(lambda: len(_listeners(worker, made["id"])) == 1, "the first one listens")
        worker.claim()
        worker.accept()
        worker.say("hel")
        late = pool.submit(_events, other, made["id"])
        wait_until(lambda: len(_listeners(worker, made["id"])) == 2, "the second one listens")
        twice = pool.submit(_events, other, made["id"], 0)
        worker.say("lo")
        worker.finish()
        texts = [_lines(one.result(10)) for one in (early, late)]
        assert texts[0] == texts[1] and len(texts[0]) == 8
        assert _lines(twice.result(10)) == texts[0][2:]


def test_who_leaves_a_jobs_stream_does_not_stop_the_job(
    api: httpx.Client, worker: ScriptedWorker
) -> None:
    made = submit(api, job(STREAM))
    worker.claim()
    worker.accept()
    worker.say("h")
    with api.stream("GET", f"/v1/jobs/{made['id']}/events") as response:
        next(response.iter_lines())
    time.sleep(LEAVING_S)
    worker.say("i")
    assert worker.beat() == set()
    worker.finish()
    done = wait_for_status(api, made["id"], "finished")
    assert done["response"]["body"]["choices"][0]["message"]["content"] == "hi"


def test_the_stream_of_a_requeued_job_is_that_of_its_new_run(
    valkey: Valkey, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.reply_channel.LATE_S", 0)
    with api_server(valkey, job_timeout=0.3) as api:
        made = submit(api, job(STREAM))
        wait_for_status(api, made["id"], "expired")
        Job.fetch(made["id"], connection=worker.redis, serializer=RestrictedSerializer).requeue()
        with _reading(api, made["id"]) as reading:
            time.sleep(LEAVING_S)  # several sweeps look at it
            worker.claim()
            worker.accept()
            worker.say("hi")
            worker.finish()
            assert _ids(reading.result(10)) == [0, 1]


def test_a_failed_jobs_stream_answers_as_the_endpoint_does(
    api: httpx.Client, worker: ScriptedWorker
) -> None:
    made = submit(api, job(STREAM))
    worker.claim()
    worker.refuse()
    response = api.get(f"/v1/jobs/{made['id']}/events")
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("given", ["x", "-1", "1.5", "9" * 30])
def test_an_event_id_that_is_none_of_ours_is_refused(
    api: httpx.Client, worker: ScriptedWorker, given: str
) -> None:
    made = submit(api, job(STREAM))
    headers = {"Last-Event-ID": given}
    assert api.get(f"/v1/jobs/{made['id']}/events", headers=headers).status_code == 400


def test_a_stream_whose_api_was_killed_goes_on_at_another(valkey: Valkey) -> None:
    body = {"model": "fake", "prompt": "x", "max_tokens": 60, "stream": True, "seed": 3}
    with (
        api_process(valkey) as (first, process),
        running_worker(valkey, "w1", step_s=0.02),
        api_server(valkey) as second,
    ):
        wait_until(lambda: second.get("/ready").status_code == 200, "a worker is there")
        seen = ""
        with first.stream("POST", TEXT, json=body) as response:
            job_id = response.headers["x-job-id"]
            try:
                for piece in response.iter_text():
                    seen += piece
                    if len(_ids(seen)) >= 3 and process.poll() is None:
                        process.kill()
            except httpx.TransportError:
                pass
        seen = seen[: seen.rindex("\n\n") + 2]
        assert 3 <= len(_ids(seen)) < 60 and look(second, job_id)["status"] == "running"
        rest = _events(second, job_id, _ids(seen)[-1])
        assert _lines(seen + rest) == _lines(_events(second, job_id))
        assert _ids(seen + rest) == list(range(60))


def _listeners(worker: ScriptedWorker, job_id: str) -> list[str]:
    value = worker.redis.hget(f"rq:job:{job_id}", "dfl_api")
    return value.decode().split(",") if value else []


def test_the_list_of_listeners_is_bounded(api: httpx.Client, worker: ScriptedWorker) -> None:
    made = submit(api, job(STREAM))
    gone = ",".join(f"api{number}" for number in range(20))
    worker.redis.hset(f"rq:job:{made['id']}", "dfl_api", gone)
    with _reading(api, made["id"]) as reading:
        wait_until(lambda: len(_listeners(worker, made["id"])) == 8, "they are cut to eight")
        worker.claim()
        worker.accept()
        worker.say("h")
        worker.finish()
        assert _ids(reading.result(10)) == [0]
