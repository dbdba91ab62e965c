"""Tokens of a text and back, over HTTP; the worker is a fake."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.fakes import MODEL, FakeGateway
from worker.wire.messages import Chat, ChatMessage, ModelInfo, Prompts
from worker.wire.questions import DescribeTokenizer, Detokenize, Tokenize

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def asked(gateway: FakeGateway) -> list[Any]:
    gateway.asked.clear()
    return gateway.asked


def test_a_prompt_is_counted(http: httpx.Client, asked: list[Any]) -> None:
    body = {"model": "tiny", "prompt": "hi", "add_special_tokens": False, "return_token_strs": True}
    assert http.post("/tokenize", json=body).json() == {
        "count": 2,
        "max_model_len": 128,
        "tokens": [7, 8],
        "token_strs": ["a", "b"],
    }
    assert asked == [("tiny", Tokenize(Prompts(["hi"]), add_bos=False, wants_pieces=True))]


def test_a_chat_is_rendered_as_it_would_be_answered(http: httpx.Client, asked: list[Any]) -> None:
    assert http.post("/tokenize", json=CHAT | {"add_generation_prompt": False}).status_code == 200
    rendered = Chat([ChatMessage("user", "hi")], add_generation_prompt=False)
    assert asked == [("tiny", Tokenize(rendered))]


def test_tokens_become_text_and_the_tokenizer_is_described(
    http: httpx.Client, asked: list[Any]
) -> None:
    assert http.post("/detokenize", json={"tokens": [7, 8]}).json() == {"prompt": "ab"}
    facts = http.get("/tokenizer_info", params={"model": "tiny"}).json()
    assert facts == {"model": "tiny", "max_model_len": 128, "eos_token": "</s>"}
    assert asked == [("tiny", Detokenize([7, 8])), ("tiny", DescribeTokenizer())]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", **CHAT}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "x", "shoe": 1}, "shoe"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {}, "tokens"),
    ],
)
def test_what_is_wrong_is_named(
    http: httpx.Client, asked: list[Any], path: str, body: dict[str, Any], param: str
) -> None:
    reply = http.post(path, json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert asked == []


def test_of_several_models_one_must_be_named(
    http: httpx.Client, gateway: FakeGateway, asked: list[Any]
) -> None:
    gateway.known = [MODEL, ModelInfo("other", 64, [], 1, "f")]
    reply = http.post("/tokenize", json={"prompt": "x"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "model")
    assert http.post("/tokenize", json={"prompt": "x", "model": "other"}).status_code == 200
    assert http.post("/tokenize", json={"prompt": "x", "model": "none"}).status_code == 404


def test_the_load_is_what_runs_and_what_waits(http: httpx.Client, gateway: FakeGateway) -> None:
    assert http.get("/load").json() == {"server_load": 3}
