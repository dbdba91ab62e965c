"""Knobs of the ways of generating: from body to job, refused by name, and said in the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from tests.api.fakes import FakeGateway, polite
from worker.wire.messages import (
    Delta,
    Event,
    Finished,
    GenerateJob,
    GenerationStats,
    ModelInfo,
    Options,
    PredictionStats,
    Usage,
)

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO: Any = [{"role": "user", "content": "Say hello"}]
FILLING = ModelInfo("tiny", 128, ["ar", "diffusion"], 1, "fp-1")

KNOBS: dict[str, Any] = {
    "denoising_steps": 4,
    "block_length": 8,
    "confidence_threshold": 0.5,
    "unmasking_factor": 1.5,
    "remasking": "margin",
    "canvas_cache": "prefix",
    "acceptance": "rejection",
    "skip_verify_confidence": 0.75,
    "apd_mix_weight": 0.25,
    "apd_lookahead": 16,
    "apd_window": 12,
    "apd_max_parallel": 6,
    "apd_threshold": 1.0,
}

REFUSED = [
    ({"denoising_steps": 0}, "denoising_steps"),
    ({"denoising_steps": 1.5}, "denoising_steps"),
    ({"block_length": 0}, "block_length"),
    ({"confidence_threshold": 1.5}, "confidence_threshold"),
    ({"confidence_threshold": "high"}, "confidence_threshold"),
    ({"unmasking_factor": 0}, "unmasking_factor"),
    ({"remasking": "best"}, "remasking"),
    ({"canvas_cache": True}, "canvas_cache"),
    ({"acceptance": "typical"}, "acceptance"),
    ({"skip_verify_confidence": -0.1}, "skip_verify_confidence"),
    ({"apd_mix_weight": 2}, "apd_mix_weight"),
    ({"apd_window": 0}, "apd_window"),
    ({"prediction": "yes"}, "prediction"),
    ({"prediction": {"type": "content"}}, "prediction.content"),
    ({"prediction": {"type": "image", "content": "x"}}, "prediction.type"),
    ({"prediction": {"type": "content", "content": 1}}, "prediction.content"),
    ({"prediction": {"type": "content", "content": "x" * 131_073}}, "prediction.content"),
    (
        {"prediction": {"type": "content", "content": [{"type": "file", "file": {}}]}},
        "prediction.content[0].type",
    ),
    (
        {"prediction": {"type": "content", "content": [{"type": "text"}]}},
        "prediction.content[0].text",
    ),
]


async def filling(job: GenerateJob) -> AsyncIterator[Event]:
    yield Delta(job.job_id, 0, 0, [1], "first")
    yield Delta(job.job_id, 1, 0, [2], "second", "length", None, ["first", "second"])
    yield Finished(job.job_id, 2, Usage(5, 2, 0), None, 1, GenerationStats("diffusion", False, 7))


async def predicted(job: GenerateJob) -> AsyncIterator[Event]:
    async for event in polite(job):
        if isinstance(event, Finished):
            stats = GenerationStats("ar", True, 3), PredictionStats(6, 2)
            yield Finished(job.job_id, event.num_deltas, event.usage, event.draft, 1, *stats)
        else:
            yield event


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_every_knob_reaches_the_job(http: httpx.Client, gateway: FakeGateway, path: str) -> None:
    body = {"model": "tiny", **({"messages": HELLO} if path == CHAT else {"prompt": "x"}), **KNOBS}
    assert http.post(path, json=body).status_code == 200
    assert gateway.jobs[0].options == Options(**KNOBS)


def test_a_request_without_knobs_sends_none(http: httpx.Client, gateway: FakeGateway) -> None:
    nothing = {**dict.fromkeys(KNOBS), "prediction": None, "suffix": ""}
    assert http.post(TEXT, json={"model": "tiny", "prompt": "x", **nothing}).status_code == 200
    assert gateway.jobs[0].options is None
    assert gateway.jobs[0].mode is None


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=range(len(REFUSED)))
def test_a_knob_that_cannot_be_meant_names_its_field(
    http: httpx.Client, gateway: FakeGateway, fields: dict[str, Any], param: str
) -> None:
    for path, body in ((CHAT, {"messages": HELLO}), (TEXT, {"prompt": "x"})):
        response = http.post(path, json={"model": "tiny", **body, **fields})
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == param, response.text
    assert gateway.jobs == []


def test_a_prediction_is_text_whole_or_in_parts(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    parts: Any = [{"type": "text", "text": "Hello"}, {"type": "text", "text": ", world"}]
    for content in ("Hello, world", parts):
        client.chat.completions.create(
            model="tiny", messages=HELLO, prediction={"type": "content", "content": content}
        )
    assert [job.options for job in gateway.jobs] == [Options(prediction="Hello, world")] * 2


def test_what_became_of_a_prediction_is_counted_as_openai_does(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    gateway.script = predicted
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, prediction={"type": "content", "content": "Hello"}
    )
    details = answer.usage.completion_tokens_details
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (6, 2)
    assert answer.model_extra["metrics"]["generation"] == {
        "mode": "ar", "lossless": True, "num_forwards": 3,
    }  # fmt: skip


def test_without_a_prediction_nothing_is_counted(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO)
    assert answer.usage.completion_tokens_details is None
    assert "generation" not in answer.model_extra["metrics"], "a worker of an earlier version"


def _num_infills(http: httpx.Client) -> float:
    name = 'dfastllm_infill_requests_total{model_name="tiny"} '
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


@pytest.mark.parametrize(
    ("suffix", "suffixes"), [("end", ["end"]), (["mid", "end"], ["mid", "end"])]
)
def test_a_suffix_names_its_mode(
    client: openai.OpenAI,
    http: httpx.Client,
    gateway: FakeGateway,
    suffix: Any,
    suffixes: list[str],
) -> None:
    gateway.known = [FILLING]
    before = _num_infills(http)
    client.completions.create(model="tiny", prompt="x", suffix=suffix)
    client.completions.create(model="tiny", prompt="x")
    assert _num_infills(http) == before + 1
    assert (gateway.jobs[0].mode, gateway.jobs[0].options) == (
        "diffusion", Options(suffixes=suffixes),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("known", "fields"),
    [
        (ModelInfo("tiny", 128, ["ar", "deer"], 1, "fp-1"), {}),
        (FILLING, {"mode": "ar"}),
        (FILLING, {"suffix": ["x"] * 65}),
        (FILLING, {"suffix": 5}),
    ],
)
def test_a_suffix_that_no_mode_can_honour_is_refused(
    http: httpx.Client, gateway: FakeGateway, known: ModelInfo, fields: dict[str, Any]
) -> None:
    gateway.known = [known]
    response = http.post(TEXT, json={"model": "tiny", "prompt": "x", "suffix": "end", **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "suffix"
    assert gateway.jobs == []


def test_editors_fill_in_by_a_name_of_their_own(http: httpx.Client, gateway: FakeGateway) -> None:
    gateway.known = [FILLING]
    body = {"model": "tiny", "prompt": "def f(", "suffix": "return x"}
    reply = http.post("/v1/fim/completions", json=body)
    assert reply.json()["object"] == "text_completion"
    assert gateway.jobs[0].mode == "diffusion"
    assert gateway.jobs[0].options is not None
    assert gateway.jobs[0].options.suffixes == ["return x"]


def test_several_holes_can_be_told_apart(client: openai.OpenAI, gateway: FakeGateway) -> None:
    gateway.known, gateway.script = [FILLING], filling
    wanted: Any = {"model": "tiny", "prompt": "x", "suffix": ["mid", "end"]}
    answer = client.completions.create(**wanted)
    assert answer.choices[0].text == "firstsecond"
    assert answer.choices[0].model_extra["holes"] == ["first", "second"]
    metrics = answer.model_extra["metrics"]
    assert metrics == {"generation": {"mode": "diffusion", "lossless": False, "num_forwards": 7}}
    first, last = client.completions.create(**wanted, stream=True)
    assert "holes" not in first.choices[0].model_extra
    assert last.choices[0].model_extra["holes"] == ["first", "second"]


def test_a_streams_last_chunk_says_how_it_was_generated(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    gateway.script = predicted
    usage: Any = {"include_usage": True}
    *_, last = client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options=usage
    )
    assert last.usage.completion_tokens_details.accepted_prediction_tokens == 6
    assert last.model_extra["metrics"]["generation"]["mode"] == "ar"
