"""The event stream itself: comments, faults after the start, clients that go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.api.fakes import FakeGateway, polite, served
from worker.wire.messages import (
    Accepted,
    Delta,
    Event,
    Failed,
    Finished,
    GenerateJob,
    Rejected,
    Usage,
)

CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}
WAIT_S = 5.0


async def silent(job: GenerateJob) -> AsyncIterator[Event]:
    await asyncio.sleep(3600)
    yield Accepted(job.job_id, 1)


async def accepted_only(job: GenerateJob) -> AsyncIterator[Event]:
    yield Accepted(job.job_id, 1)


async def late(job: GenerateJob) -> AsyncIterator[Event]:
    await asyncio.sleep(0.2)
    async for event in polite(job):
        yield event


async def late_refusal(job: GenerateJob) -> AsyncIterator[Event]:
    await asyncio.sleep(0.2)
    yield Rejected(job.job_id, 400, "too long", "messages", "context_length_exceeded")


async def breaks(job: GenerateJob) -> AsyncIterator[Event]:
    yield Accepted(job.job_id, 1)
    yield Delta(job.job_id, 0, 0, [1], "Hel")
    yield Failed(job.job_id, 500, "the worker died", "worker_lost")


async def half_characters(job: GenerateJob) -> AsyncIterator[Event]:
    yield Accepted(job.job_id, 1)
    yield Delta(job.job_id, 0, 0, [1], "")
    yield Delta(job.job_id, 1, 0, [2], "ö", "length")
    yield Finished(job.job_id, 2, Usage(1, 2, 0))


def _events(text: str) -> list[dict[str, object]]:
    return [
        json.loads(line.removeprefix("data: "))
        for line in text.splitlines()
        if line.startswith("data: {")
    ]


def test_a_stream_is_not_to_be_buffered_and_ends_with_done(
    http: httpx.Client, gateway: FakeGateway
) -> None:
    response = http.post(CHAT, json=BODY)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["cache-control"] == "no-cache"
    assert response.text.endswith("data: [DONE]\n\n")
    assert "metrics" not in response.text


def test_each_delta_carries_its_index_as_event_id(http: httpx.Client, gateway: FakeGateway) -> None:
    lines = http.post(CHAT, json=BODY).text.splitlines()
    assert [line for line in lines if line.startswith("id: ")] == ["id: 0", "id: 1", "id: 2"]


def test_a_long_wait_in_the_queue_opens_the_stream_with_comments(
    http: httpx.Client, gateway: FakeGateway
) -> None:
    gateway.script = late
    response = http.post(CHAT, json=BODY)
    assert response.text.startswith(": queued, position 12\n")
    assert "Hello" in response.text


def test_a_late_refusal_is_an_event(http: httpx.Client, gateway: FakeGateway) -> None:
    gateway.script = late_refusal
    response = http.post(CHAT, json=BODY)
    assert response.status_code == 200
    assert _events(response.text) == [
        {
            "error": {
                "message": "too long",
                "type": "invalid_request_error",
                "param": "messages",
                "code": "context_length_exceeded",
            }
        }
    ]


def test_a_failure_after_the_first_token_is_an_event(
    http: httpx.Client, gateway: FakeGateway
) -> None:
    gateway.script = breaks
    *_, text, error = _events(http.post(CHAT, json=BODY).text)
    assert text["choices"][0]["delta"] == {"content": "Hel"}  # type: ignore[index]
    assert error["error"]["code"] == "worker_lost"  # type: ignore[index]
    assert gateway.cancelled == []


def test_the_same_failure_is_a_status_where_nothing_was_sent(
    http: httpx.Client, gateway: FakeGateway
) -> None:
    gateway.script = breaks
    response = http.post(CHAT, json=BODY | {"stream": False})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "worker_lost"


def test_half_a_character_is_no_event(http: httpx.Client, gateway: FakeGateway) -> None:
    gateway.script = half_characters
    role, text = _events(http.post(CHAT, json=BODY).text)
    assert role["choices"][0]["delta"]["role"] == "assistant"  # type: ignore[index]
    assert text["choices"][0]["delta"] == {"content": "ö"}  # type: ignore[index]
    assert text["choices"][0]["finish_reason"] == "length"  # type: ignore[index]


def test_a_silent_stream_is_kept_alive_by_pings(http: httpx.Client, gateway: FakeGateway) -> None:
    gateway.script = accepted_only
    with http.stream("POST", CHAT, json=BODY) as response:
        lines = response.iter_lines()
        assert [next(lines) for _ in range(2)] == [": ping", ": ping"]
    assert gateway.closed.wait(WAIT_S)
    assert gateway.cancelled == [gateway.jobs[0].job_id]


def test_a_client_that_leaves_the_queue_takes_its_job_with_it(
    http: httpx.Client, gateway: FakeGateway
) -> None:
    gateway.script = silent
    with http.stream("POST", CHAT, json=BODY) as response:
        assert next(response.iter_lines()) == ": queued, position 12"
    assert gateway.closed.wait(WAIT_S)
    assert gateway.cancelled == [gateway.jobs[0].job_id]


@pytest.mark.parametrize("script", [silent, accepted_only])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_before_any_answer_cancels_its_job(
    script: object, stream: bool
) -> None:
    gateway = FakeGateway(script=script)  # type: ignore[arg-type]
    with served(gateway) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + CHAT, json=BODY | {"stream": stream}, timeout=0.3)
        # While the server still runs: when it stops, it lets go of everything anyway.
        assert gateway.closed.wait(WAIT_S)
    assert gateway.cancelled == [job.job_id for job in gateway.jobs]


def test_a_stopping_server_lets_go_of_its_jobs() -> None:
    gateway = FakeGateway(script=accepted_only)
    with httpx.Client() as client:
        with served(gateway, ping_s=0.05) as url:
            request = client.build_request("POST", url + CHAT, json=BODY)
            lines = client.send(request, stream=True).iter_lines()
            assert next(lines) == ": ping"
            assert not gateway.closed.is_set()
        # The server has stopped, although its client never hung up.
        assert gateway.cancelled == [gateway.jobs[0].job_id]
