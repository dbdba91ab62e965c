"""Functions that an answer may call: what the worker hears of them, and what the client sees."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import msgspec
import openai
import pytest

from tests.api.fakes import MODEL, FakeGateway
from worker.wire.messages import Accepted, Chat, Delta, Event, Finished, GenerateJob, Usage

CHAT = "/v1/chat/completions"
HELLO: Any = [{"role": "user", "content": "Will it rain?"}]
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Ask the weather office.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/City"}},
        "$defs": {"City": {"enum": ["Oslo", "Rome"]}},
    },
}
TOOLS: Any = [
    {"type": "function", "function": WEATHER},
    {"type": "function", "function": {"name": "stop"}},
]
SPOKEN = [
    "I ask.", "\n<tool", "_call>\n{", '"name": "get_weather", "arguments": {"city"',
    ': "Oslo"}}', "\n</tool_call>", "",
]  # fmt: skip


async def _call(job: GenerateJob) -> AsyncIterator[Event]:
    yield Accepted(job.job_id, 5)
    index = 0
    for position, text in enumerate(SPOKEN):
        for choice in range(job.n):
            reason = "stop" if position == len(SPOKEN) - 1 else None
            yield Delta(job.job_id, index, choice, [position], text, reason)
            index += 1
    yield Finished(job.job_id, index, Usage(5, index, 0))


@pytest.fixture
def gateway(gateway: FakeGateway) -> Iterator[FakeGateway]:
    gateway.script = _call
    gateway.known = [msgspec.structs.replace(MODEL, tool_syntax="hermes")]
    yield gateway


def test_a_call_comes_back_as_a_call(client: openai.OpenAI, gateway: FakeGateway) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, tools=TOOLS)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I ask."
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Oslo"}


def test_a_streamed_call_is_that_of_the_whole_answer(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    with client.chat.completions.stream(model="tiny", messages=HELLO, tools=TOOLS, n=2) as stream:
        num_pieces = sum(event.type == "tool_calls.function.arguments.delta" for event in stream)
        answer = stream.get_final_completion()
    assert num_pieces > 2
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "I ask."
        (call,) = choice.message.tool_calls
        assert call.function.arguments == '{"city": "Oslo"}'
    assert answer.choices[0].message.tool_calls[0].id != answer.choices[1].message.tool_calls[0].id


def test_the_worker_gets_the_definitions_and_the_conversation(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, tools=TOOLS)
    message = answer.choices[0].message
    call_id = message.tool_calls[0].id
    result: Any = {"role": "tool", "tool_call_id": call_id, "content": "Rain."}
    client.chat.completions.create(model="tiny", messages=[*HELLO, message, result], tools=TOOLS)
    chat = gateway.jobs[1].input
    assert isinstance(chat, Chat)
    assert chat.tools is not None
    assert chat.tools.definitions[0] == TOOLS[0]
    assert chat.tools.definitions[1]["function"]["parameters"] == {"type": "object"}
    assert chat.messages[1].tool_calls[0].id == call_id
    assert chat.messages[1].tool_calls[0].arguments == '{"city": "Oslo"}'
    assert chat.messages[2].tool_call_id == call_id
    assert gateway.jobs[1].sampling.grammar is None


@pytest.mark.parametrize("choice", ["none", {"type": "allowed_tools", "allowed_tools": {
    "mode": "auto", "tools": []}}])  # fmt: skip
def test_without_a_tool_to_call_the_text_is_left_alone(
    client: openai.OpenAI, gateway: FakeGateway, choice: Any
) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, tools=TOOLS, tool_choice=choice
    )
    assert answer.choices[0].message.content == "".join(SPOKEN)
    assert answer.choices[0].finish_reason == "stop"
    chat = gateway.jobs[0].input
    assert isinstance(chat, Chat)
    assert chat.tools is None


def test_who_names_the_function_hears_stop(client: openai.OpenAI, gateway: FakeGateway) -> None:
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, tools=TOOLS, tool_choice=named
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.tool_calls
    job = gateway.jobs[0]
    assert isinstance(job.input, Chat)
    assert job.input.tools is not None
    assert [one["function"]["name"] for one in job.input.tools.definitions] == ["get_weather"]
    assert job.sampling.grammar is not None
    assert "stop" not in job.sampling.grammar.definition


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [TOOLS[1], {"type": "function", "function": {"name": "a b"}}]},
     "tools[1].function.name"),
    ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
    ({"tools": TOOLS, "tool_choice": "perhaps"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "go"}}},
     "tool_choice.function.name"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}},
     "response_format"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "type": "function",
      "function": {"name": "f", "arguments": "[1"}}]}]},
     "messages[0].tool_calls[0].function.arguments"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "a", "type": "function",
      "function": {"name": "f", "arguments": "{}"}}]}]}, "messages[0].tool_calls"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), WRONG)
def test_what_is_wrong_is_named(
    http: httpx.Client, gateway: FakeGateway, fields: dict[str, Any], param: str
) -> None:
    reply = http.post(CHAT, json={"model": "tiny", "messages": HELLO, **fields})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert gateway.jobs == []


def test_a_model_whose_template_has_no_tools_refuses_them(
    http: httpx.Client, gateway: FakeGateway
) -> None:
    gateway.known = [MODEL]
    reply = http.post(CHAT, json={"model": "tiny", "messages": HELLO, "tools": TOOLS})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "tools"
