"""Structured outputs through API, queue and a worker with the shipped models."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from engine.build import EMBEDDED_NAME
from tests.real_worker import client_of_a_real_worker
from tests.valkey import Valkey

HELLO: Any = [{"role": "user", "content": "Answer in JSON: who are you?"}]


class Answer(BaseModel):
    sure: bool
    count: int


def test_a_client_gets_what_it_described(valkey: Valkey) -> None:
    with client_of_a_real_worker(valkey) as client:
        _ask_for_all_kinds(client)
        _ask_for_the_impossible(client)


def _ask_for_all_kinds(client: openai.OpenAI) -> None:
    def ask(**fields: Any) -> str:
        answer = client.chat.completions.create(
            model=EMBEDDED_NAME, messages=HELLO, seed=1, max_tokens=150, **fields
        )
        assert answer.choices[0].finish_reason == "stop"
        return answer.choices[0].message.content or ""

    schema = Answer.model_json_schema() | {"additionalProperties": False}
    schema["properties"]["count"] |= {"minimum": 0, "maximum": 9}
    named = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    value = json.loads(ask(response_format=named))
    assert list(value) == ["sure", "count"]
    assert isinstance(value["sure"], bool) and 0 <= value["count"] <= 9
    pattern = r"[a-z]{3,8} \d{2}"
    assert re.fullmatch(pattern, ask(extra_body={"structured_outputs": {"regex": pattern}}))
    assert ask(extra_body={"guided_choice": ["left", "right"]}) in ("left", "right")
    grammar = 'root ::= "yes" | "no" "!"{1,3}'
    assert re.fullmatch("yes|no!{1,3}", ask(extra_body={"guided_grammar": grammar}))
    parsed = client.chat.completions.parse(
        model=EMBEDDED_NAME, messages=HELLO, seed=1, response_format=Answer, max_tokens=250
    )
    assert isinstance(parsed.choices[0].message.parsed, Answer)


def _ask_for_the_impossible(client: openai.OpenAI) -> None:
    named: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "shoe"}}}
    for param, fields in (
        ("response_format", {"response_format": named}),
        ("guided_regex", {"extra_body": {"guided_regex": "("}}),
    ):
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(
                    model=EMBEDDED_NAME, messages=HELLO, stream=stream, **fields
                )
            assert caught.value.param == param
