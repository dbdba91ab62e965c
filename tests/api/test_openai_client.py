"""The real OpenAI client against the server: what its users see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from api.errors import QueueIsFullError, UnavailableError
from tests.api.fakes import FakeGateway, polite
from worker.wire.messages import Chat, ChatMessage, Event, GenerateJob, Prompts, Rejected

HELLO: Any = [{"role": "user", "content": "Say hello"}]
ANSWER = "Hello, wörld"


async def pausing(job: GenerateJob) -> AsyncIterator[Event]:
    """Answer with a pause of several pings after each event, as when a worker dies."""
    async for event in polite(job):
        yield event
        await asyncio.sleep(0.2)


def test_a_chat_is_answered_in_one_piece(client: openai.OpenAI, gateway: FakeGateway) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.id == gateway.jobs[0].job_id
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.completion_tokens == 3
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer.system_fingerprint == "fp-1"


def test_draft_statistics_keep_their_identities(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO)
    stats = answer.model_extra["metrics"]["speculative_decoding"]
    histogram = stats["acceptance_histogram"]
    assert sum(histogram) == stats["num_spec_steps"] == 2
    accepted = sum(j * steps for j, steps in enumerate(histogram))
    assert accepted == stats["num_accepted_draft_tokens"] == 2
    assert stats["mean_acceptance_length"] == 1 + accepted / stats["num_spec_steps"]
    assert stats["draft_acceptance_rate"] == accepted / stats["num_draft_tokens"]


def test_a_streamed_chat_says_its_role_once_and_then_the_text(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    chunks = list(client.chat.completions.create(model="tiny", messages=HELLO, stream=True))
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", None, None, None]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)
    assert gateway.jobs[0].stream
    assert gateway.cancelled == []


def test_a_pause_within_an_answer_is_no_event_to_the_client(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    gateway.script = pausing
    chunks = list(client.chat.completions.create(model="tiny", messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER


def test_usage_comes_in_a_last_chunk_of_its_own_when_asked_for(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    *chunks, last = client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage.total_tokens == 8
    assert last.model_extra["metrics"]["speculative_decoding"]["num_spec_steps"] == 2


def test_usage_so_far_is_in_every_chunk_when_asked_for(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    for chunks in (
        client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, stream_options=options
        ),
        client.completions.create(model="tiny", prompt="Hi", stream=True, stream_options=options),
    ):
        *usages, last = [chunk.usage for chunk in chunks]  # type: ignore[attr-defined]
        assert [usage.completion_tokens for usage in usages][-3:] == [1, 2, 3]
        assert {usage.prompt_tokens for usage in usages} == {5}
        assert last == usages[-1].model_copy(
            update={"prompt_tokens_details": last.prompt_tokens_details}
        )


def test_chunks_can_be_padded_to_like_lengths(client: openai.OpenAI, gateway: FakeGateway) -> None:
    chunks = client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options={"include_obfuscation": True}
    )
    lengths = {
        len(chunk.obfuscation or "") + len(chunk.choices[0].delta.content or "") for chunk in chunks
    }
    assert lengths == {32}


def test_every_choice_of_n_streams_under_its_own_index(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    texts = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(model="tiny", messages=HELLO, n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: ANSWER, 1: ANSWER, 2: ANSWER}


def test_chat_logprobs_have_bytes_and_rivals(client: openai.OpenAI, gateway: FakeGateway) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, logprobs=True, top_logprobs=2
    )
    token = answer.choices[0].logprobs.content[2]
    assert token.token == "wörld"
    assert bytes(token.bytes).decode() == "wörld"
    assert [top.token for top in token.top_logprobs] == ["wörld", "x"]
    assert gateway.jobs[0].sampling.logprobs == 2


def test_completion_logprobs_count_characters(client: openai.OpenAI, gateway: FakeGateway) -> None:
    answer = client.completions.create(model="tiny", prompt="Hi", logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs.tokens == ["Hello", ", ", "wörld"]
    assert logprobs.text_offset == [0, 5, 7]
    assert logprobs.top_logprobs[0] == {"Hello": -0.5}


def test_streamed_completion_logprobs_go_on_counting(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    chunks = client.completions.create(model="tiny", prompt="Hi", logprobs=0, stream=True)
    assert [chunk.choices[0].logprobs.text_offset for chunk in chunks] == [[0], [5], [7]]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("Hi", ["Hi"]),
        (["Hi", "Ho"], ["Hi", "Ho"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_a_completion_takes_all_four_spellings_of_a_prompt(
    client: openai.OpenAI,
    gateway: FakeGateway,
    prompt: object,
    prompts: list[object],
) -> None:
    answer = client.completions.create(model="tiny", prompt=prompt)
    assert gateway.jobs[0].input == Prompts(prompts)
    assert [choice.text for choice in answer.choices] == [ANSWER] * len(prompts)
    assert gateway.jobs[0].sampling.max_tokens == 16


def test_token_ids_come_back_when_asked_for(client: openai.OpenAI, gateway: FakeGateway) -> None:
    extra = {"return_token_ids": True}
    answer = client.completions.create(model="tiny", prompt="Hi", extra_body=extra)
    assert answer.choices[0].model_extra["token_ids"] == [0, 1, 2]
    chunks = client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, extra_body=extra
    )
    ids = [chunk.choices[0].model_extra.get("token_ids", []) for chunk in chunks]
    assert ids == [[], [0], [1], [2]]


def test_every_sampling_field_reaches_the_job(client: openai.OpenAI, gateway: FakeGateway) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_completion_tokens=9,
        temperature=0,
        top_p=0.5,
        seed=-1,
        stop=["a", "b"],
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"7": -100},
        service_tier="flex",
        extra_body={
            "top_k": -1, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2,
            "ignore_eos": True, "stop_token_ids": [3], "mode": "ar", "draft_length": 0,
            "cache_salt": "s",
        },
    )  # fmt: skip
    job = gateway.jobs[0]
    sampling = job.sampling
    assert sampling.max_tokens == 9
    assert sampling.temperature == 0
    assert sampling.top_p == 0.5
    assert sampling.seed == 2**63 - 1
    assert sampling.stop == ["a", "b"]
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert sampling.logit_bias == {7: -100}
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (0, 0.1, 1.2)
    assert (sampling.min_tokens, sampling.ignore_eos, sampling.stop_token_ids) == (2, True, [3])
    assert (job.mode, job.draft_length, job.cache_salt) == ("ar", 0, "s")
    assert gateway.priorities == ["batch"]


@pytest.mark.parametrize(
    ("asked", "priority", "used"),
    [
        ({"service_tier": "flex"}, "batch", "flex"),
        ({"service_tier": "auto"}, "default", "default"),
        ({"service_tier": "fast"}, "interactive", "priority"),
        (
            {"service_tier": "flex", "extra_body": {"priority": "interactive"}},
            "interactive",
            "priority",
        ),
        ({"extra_body": {"priority": "batch"}}, "batch", None),
    ],
)
def test_the_answer_says_which_tier_it_was_served_in_where_one_was_asked_for(
    client: openai.OpenAI, gateway: FakeGateway, asked: Any, priority: str, used: str | None
) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, **asked)
    assert (answer.service_tier, gateway.priorities) == (used, [priority])
    chunks = client.chat.completions.create(model="tiny", messages=HELLO, stream=True, **asked)
    assert {chunk.service_tier for chunk in chunks} == {used}
    text = client.completions.create(
        model="tiny", prompt="Hi", extra_body={**asked.pop("extra_body", {}), **asked}
    )
    assert (text.model_extra or {}).get("service_tier") == used


def test_a_seed_is_drawn_where_none_is_given(client: openai.OpenAI, gateway: FakeGateway) -> None:
    for _ in range(2):
        client.completions.create(model="tiny", prompt="Hi")
    first, second = (job.sampling.seed for job in gateway.jobs)
    assert first != second


def test_parts_of_a_message_are_joined_and_developers_are_the_system(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    own_answer = client.chat.completions.create(model="tiny", messages=HELLO).choices[0].message
    client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "Be brief"},
            own_answer.model_dump(),  # with all the nulls the client's own object has
            {"role": "user", "content": parts},
        ],
    )
    assert gateway.jobs[1].input == Chat(
        [
            ChatMessage("system", "Be brief"),
            ChatMessage("assistant", ANSWER),
            ChatMessage("user", "one\ntwo"),
        ]
    )


def test_a_fault_of_the_client_is_a_bad_request(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=3)
    assert caught.value.param == "temperature"
    assert caught.value.type == "invalid_request_error"
    assert gateway.jobs == []


def test_an_unknown_model_is_not_found(client: openai.OpenAI, gateway: FakeGateway) -> None:
    with pytest.raises(openai.NotFoundError, match="'tiny'") as caught:
        client.chat.completions.create(model="huge", messages=HELLO)
    assert caught.value.code == "model_not_found"


def test_a_full_queue_is_a_rate_limit(client: openai.OpenAI, gateway: FakeGateway) -> None:
    gateway.refusal = QueueIsFullError("full", retry_after_s=6.2)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="tiny", messages=HELLO)
    assert caught.value.response.headers["retry-after"] == "7"


def test_a_missing_queue_is_a_server_fault(client: openai.OpenAI, gateway: FakeGateway) -> None:
    gateway.refusal = UnavailableError("away")
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="tiny", messages=HELLO)
    assert caught.value.status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_worker_refuses_is_a_bad_request_too(
    client: openai.OpenAI, gateway: FakeGateway, stream: bool
) -> None:
    async def refuse(job: GenerateJob) -> AsyncIterator[Event]:
        yield Rejected(job.job_id, 400, "too long", "messages", "context_length_exceeded")

    gateway.script = refuse
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=HELLO, stream=stream)
    assert (caught.value.param, caught.value.code) == ("messages", "context_length_exceeded")


def test_models_are_listed(client: openai.OpenAI, gateway: FakeGateway) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "dfastllm"
