"""The Responses API through OpenAI's client, over a fake gateway."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec
import openai
import pytest

from tests.api.fakes import MODEL, FakeGateway
from tests.api.test_tools import WEATHER, _call
from worker.wire.messages import Chat, ChatMessage, GenerateJob, ToolCall

PATH = "/v1/responses"
ANSWER = "Hello, wörld"
TOOL: dict[str, Any] = {"type": "function", "strict": False, **WEATHER}


def _messages(job: GenerateJob) -> list[ChatMessage]:
    assert isinstance(job.input, Chat)
    return job.input.messages


def test_a_text_is_answered(client: openai.OpenAI, gateway: FakeGateway) -> None:
    answer = client.responses.create(
        model="tiny", input="Hi", instructions="Be brief.", metadata={"a": "b"}, temperature=0.5
    )
    assert answer.output_text == ANSWER
    assert (answer.status, answer.object) == ("completed", "response")
    assert answer.id.startswith("resp_")
    assert answer.id == gateway.jobs[0].job_id
    assert (answer.instructions, answer.metadata) == ("Be brief.", {"a": "b"})
    assert answer.temperature == 0.5
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (5, 3)
    assert answer.usage.input_tokens_details.cached_tokens == 4
    assert _messages(gateway.jobs[0]) == [
        ChatMessage("system", "Be brief."), ChatMessage("user", "Hi"),
    ]  # fmt: skip


def test_every_event_of_a_stream_has_its_number_and_the_last_is_the_response(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    events = list(client.responses.create(model="tiny", input="Hi", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    last: Any = events[-1]
    assert last.response.output_text == ANSWER
    whole = client.responses.create(model="tiny", input="Hi")
    assert last.response.output[0].content == whole.output[0].content  # type: ignore[union-attr]


def test_a_call_is_an_item_of_its_own(client: openai.OpenAI, gateway: FakeGateway) -> None:
    gateway.script = _call
    gateway.known = [msgspec.structs.replace(MODEL, tool_syntax="hermes")]
    ask: Any = {"model": "tiny", "input": "Will it rain?", "tools": [TOOL]}
    answer = client.responses.create(**ask)
    message, call = answer.output
    assert (message.type, call.type) == ("message", "function_call")
    assert call.name == "get_weather"
    assert json.loads(call.arguments) == {"city": "Oslo"}
    with client.responses.stream(**ask) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_response()
    assert kinds.count("response.function_call_arguments.delta") >= 2
    assert [item.type for item in streamed.output] == ["message", "function_call"]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
    history: Any = [{"role": "user", "content": "Will it rain?"}, message, call, result]
    client.responses.create(model="tiny", input=history, tools=ask["tools"])
    turns = _messages(gateway.jobs[-1])
    assert [turn.role for turn in turns] == ["user", "assistant", "tool"]
    assert turns[1].content == "I ask."
    assert turns[1].tool_calls == [ToolCall(call.call_id, "get_weather", '{"city": "Oslo"}')]
    assert turns[2].tool_call_id == call.call_id


def test_a_schema_is_kept_to_and_parsed(client: openai.OpenAI, gateway: FakeGateway) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    text: Any = {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}}
    answer = client.responses.create(model="tiny", input="Hi", text=text)
    grammar = gateway.jobs[0].sampling.grammar
    assert grammar is not None
    assert json.loads(grammar.definition) == schema
    assert answer.text is not None
    assert answer.text.format is not None
    assert answer.text.format.type == "json_schema"


def test_logprobs_are_included_when_asked_for(client: openai.OpenAI, gateway: FakeGateway) -> None:
    answer = client.responses.create(
        model="tiny", input="Hi", include=["message.output_text.logprobs"], top_logprobs=2
    )
    part: Any = answer.output[0].content[0]  # type: ignore[union-attr]
    assert [one.token for one in part.logprobs] == ["Hello", ", ", "wörld"]
    assert len(part.logprobs[0].top_logprobs) == 2


def test_the_limit_of_tokens_makes_it_incomplete(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    from tests.api.fakes import polite

    async def cut(job: GenerateJob) -> Any:
        async for event in polite(job):
            if getattr(event, "finish_reason", None):
                event = msgspec.structs.replace(event, finish_reason="length")
            yield event

    gateway.script = cut
    answer = client.responses.create(model="tiny", input="Hi", max_output_tokens=3)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(model="tiny", input="Hi", stream=True))
    assert events[-1].type == "response.incomplete"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input": []}, "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
     "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": []}]}, "input[0].content"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_queue_time": -1}, "max_queue_time"),
    ({"return_token_ids": True}, "return_token_ids"),
    ({"stream": True, "diffusing": True}, "diffusing"),
    ({"stream": True, "return_draft_events": True}, "return_draft_events"),
    ({"metadata": {"a": "x" * 513}}, "metadata"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"conversation": "c"}, "conversation"),
    ({"reasoning": {"effort": "high"}}, "reasoning"),
    ({"truncation": "auto"}, "truncation"),
    ({"include": ["file_search_call.results"]}, "include[0]"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"background": True, "store": False}, "background"),
    ({"n": 2}, "n"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"shoe": 1}, "shoe"),
]  # fmt: skip


def test_a_model_that_nobody_serves_is_said_at_once(
    http: httpx.Client, gateway: FakeGateway
) -> None:
    gateway.served = False
    reply = http.post(PATH, json={"model": "tiny", "input": "Hi"})
    assert reply.status_code == 503
    assert gateway.jobs == []


@pytest.mark.parametrize(("fields", "param"), WRONG)
def test_what_is_wrong_is_named(
    http: httpx.Client, gateway: FakeGateway, fields: dict[str, Any], param: str
) -> None:
    reply = http.post(PATH, json={"model": "tiny", "input": "Hi", **fields})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param
    assert gateway.jobs == []
