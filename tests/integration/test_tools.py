"""Tool calls through API, queue and a worker, by the shipped models under a template with tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import openai

from engine.build import EMBEDDED
from tests.engine.tiny_tokenizers import TOOL_TEMPLATE
from tests.real_worker import client_of_a_real_worker
from tests.valkey import Valkey

ASKED: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"$ref": "#/$defs/City"},
                    "days": {"type": "integer", "minimum": 1, "maximum": 9},
                },
                "required": ["city", "days"],
                "additionalProperties": False,
                "$defs": {"City": {"enum": ["Oslo", "Rome"]}},
            },
        },
    },
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object",
     "properties": {}, "additionalProperties": False}}},
]  # fmt: skip


def test_a_forced_call_keeps_to_its_schema(valkey: Valkey, tmp_path: Path) -> None:
    with client_of_a_real_worker(
        valkey, VDIFF_MODEL=str(_verifier_with_tools(tmp_path)), VDIFF_MODEL_NAME="tools"
    ) as client:
        _count_tokens(client)
        for number in range(4):
            answer = client.chat.completions.create(
                model="tools", messages=ASKED, tools=TOOLS, tool_choice="required", seed=number
            )
            choice = answer.choices[0]
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content is None
            assert choice.message.tool_calls
            for call in choice.message.tool_calls:
                _check(call.function.name, call.function.arguments)
            with client.chat.completions.stream(
                model="tools", messages=ASKED, tools=TOOLS, tool_choice="required", seed=number
            ) as stream:
                streamed = stream.get_final_completion().choices[0].message.tool_calls
            assert [call.function.arguments for call in streamed or []] == [
                call.function.arguments for call in choice.message.tool_calls
            ]
        named = client.chat.completions.create(
            model="tools",
            messages=ASKED,
            tools=TOOLS,
            tool_choice={"type": "function", "function": {"name": "get_weather"}},
        )
        (call,) = named.choices[0].message.tool_calls
        assert call.function.name == "get_weather"


def _count_tokens(client: openai.OpenAI) -> None:
    """The tokens of a chat are those that a request for it has."""
    body = {"messages": ASKED, "tools": TOOLS, "return_token_strs": True}
    base_url = str(client.base_url).removesuffix("v1/")
    with httpx.Client(base_url=base_url, timeout=20) as http:
        counted = http.post("/tokenize", json=body).json()
        answer = client.chat.completions.create(
            model="tools", messages=ASKED, tools=TOOLS, max_tokens=1
        )
        assert answer.usage is not None
        assert counted["count"] == answer.usage.prompt_tokens
        assert "get_weather" in "".join(counted["token_strs"])
        assert http.get("/tokenizer_info").json()["chat_template"] == TOOL_TEMPLATE
        text = {"prompt": "Once upon a time"}
        tokens = http.post("/tokenize", json=text).json()["tokens"]
        assert http.post("/detokenize", json={"tokens": tokens}).json() == text


def _check(name: str, arguments: str) -> None:
    if name == "stop":
        assert json.loads(arguments) == {}
        return
    assert name == "get_weather"
    given = json.loads(arguments)
    assert given["city"] in ("Oslo", "Rome")
    assert 1 <= given["days"] <= 9


def _verifier_with_tools(folder: Path) -> Path:
    path = folder / "verifier"
    shutil.copytree(EMBEDDED / "verifier", path)
    file = path / "tokenizer_config.json"
    config = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(config | {"chat_template": TOOL_TEMPLATE}), "utf-8")
    return path
