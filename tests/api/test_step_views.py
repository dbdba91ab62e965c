"""Snapshots and draft events in streams, from scripted traces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from tests.api.fakes import FakeGateway
from worker.wire.messages import (
    MASK,
    Accepted,
    Delta,
    Event,
    Finished,
    GenerateJob,
    Trace,
    Usage,
)

HELLO: Any = [{"role": "user", "content": "Say hello"}]
CHAT = "/v1/chat/completions"


async def _denoise(job: GenerateJob) -> AsyncIterator[Event]:
    yield Accepted(job.job_id, 5)
    yield Delta(job.job_id, 0, 0, [], "", trace=Trace(pending=f"{MASK}b", progress=0.25))
    yield Delta(job.job_id, 1, 0, [1, 2], "ab", trace=Trace(pending=MASK * 2, progress=0.5))
    yield Delta(job.job_id, 2, 0, [3, 4], "cd", "stop")
    yield Finished(job.job_id, 3, Usage(5, 4, 0))


async def _draft(job: GenerateJob) -> AsyncIterator[Event]:
    yield Accepted(job.job_id, 5)
    yield Delta(job.job_id, 0, 0, [1, 2], "", trace=Trace(["a", "x"], 1))
    yield Delta(job.job_id, 1, 0, [3], "abc", trace=Trace(["c"], 0))
    yield Delta(job.job_id, 2, 0, [4], "d", "stop")
    yield Finished(job.job_id, 3, Usage(5, 4, 0))


def test_snapshots_replace_each_other_and_an_empty_chunk_ends_them(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    gateway.script = _denoise
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, extra_body={"diffusing": True}
        )
    )
    shown = [
        (chunk.choices[0].delta.content, chunk.model_extra["diffusion_meta"]["diffusion_progress"])
        for chunk in chunks
        if chunk.choices[0].delta.content
    ]
    assert shown == [(f"{MASK}b", 0.25), (f"ab{MASK}{MASK}", 0.5), ("abcd", 1.0)]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert not chunks[-1].choices[0].delta.content
    assert gateway.jobs[0].options is not None
    assert gateway.jobs[0].options.shows_steps


def test_drafts_are_told_beside_the_text(client: openai.OpenAI, gateway: FakeGateway) -> None:
    gateway.script = _draft
    chunks = list(
        client.completions.create(
            model="tiny", prompt="x", stream=True, extra_body={"return_draft_events": True}
        )
    )
    assert [chunk.choices[0].text for chunk in chunks] == ["abc", "d"]
    assert chunks[0].model_extra["draft_events"] == [
        {"choice": 0, "drafted": ["a", "x"], "num_accepted": 1},
        {"choice": 0, "drafted": ["c"], "num_accepted": 0},
    ]
    assert "draft_events" not in chunks[1].model_extra


@pytest.mark.parametrize("name", ["diffusing", "return_draft_events"])
def test_steps_are_shown_in_streams_alone(
    http: httpx.Client, gateway: FakeGateway, name: str
) -> None:
    reply = http.post(CHAT, json={"model": "tiny", "messages": HELLO, name: True})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, name)
