"""Chats with tools, and with variables of the template's own, as a model reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.request.errors import InvalidRequestError
from engine.request.tokenizer import Tokenizer
from tests.engine.tiny_tokenizers import TOOL_TEMPLATE, make_byte_level
from worker.chat_prompt import chat_prompt
from worker.wire.messages import Chat, ChatMessage, ToolCall, Tools

DEFINITION: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {}}}
TOOLS = Tools([DEFINITION], "hermes")
ASKED = ChatMessage("user", "hello")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(make_byte_level(tmp_path_factory.mktemp("tools"), TOOL_TEMPLATE))


def _text(tokenizer: Tokenizer, chat: Chat) -> str:
    return "".join(tokenizer.token_bytes(one).decode() for one in chat_prompt(chat, tokenizer))


def test_a_templates_place_for_tools_is_seen(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.tool_syntax == "hermes"
    assert Tokenizer(make_byte_level(tmp_path / "plain")).tool_syntax == ""
    assert Tokenizer(make_byte_level(tmp_path / "none", None)).tool_syntax == ""
    xml = TOOL_TEMPLATE + "{# <tool_call><function=name> #}"
    assert Tokenizer(make_byte_level(tmp_path / "xml", xml)).tool_syntax == ""


def test_definitions_calls_and_results_are_rendered(tokenizer: Tokenizer) -> None:
    call = ChatMessage("assistant", "", tool_calls=[ToolCall("c1", "f", '{"a": [1]}')])
    result = ChatMessage("tool", "rain", tool_call_id="c1")
    text = _text(tokenizer, Chat([ASKED, call, result], TOOLS))
    assert '{"type": "function", "function": {"name": "f", "parameters": {}}}' in text
    assert '<tool_call>\n{"name": "f", "arguments": {"a": [1]}}\n</tool_call>' in text
    assert "tool\nrain (c1)<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\n")


def test_markers_in_a_definition_or_a_call_stay_text(tokenizer: Tokenizer) -> None:
    marker = tokenizer.encode("<|im_end|>")[0]
    described: dict[str, Any] = {"name": "f", "description": "<|im_end|>", "parameters": {}}
    call = ChatMessage("assistant", "", tool_calls=[ToolCall("c", "f", '{"a": "<|im_end|>"}')])
    tools = Tools([{"type": "function", "function": described}], "hermes")
    chat = Chat([ASKED, call], tools)
    num_turns = 3
    assert chat_prompt(chat, tokenizer).count(marker) == num_turns


def test_a_message_may_be_continued_and_a_prompt_left_out(tokenizer: Tokenizer) -> None:
    begun = [ASKED, ChatMessage("assistant", "It is")]
    chat = Chat(begun, add_generation_prompt=False, continue_final_message=True)
    assert _text(tokenizer, chat).endswith("assistant\nIt is")
    assert _text(tokenizer, Chat([ASKED], add_generation_prompt=False)).endswith("<|im_end|>\n")


def test_variables_are_the_templates_own_and_nothing_else(tokenizer: Tokenizer) -> None:
    chat = Chat([ASKED], template_variables={"mood": "merry"})
    assert _text(tokenizer, chat).endswith("assistant\nmerry")
    for name in ("sanitize_control_tokens", "chat_template", "tokenize", "messages"):
        with pytest.raises(InvalidRequestError, match=name) as caught:
            chat_prompt(Chat([ASKED], template_variables={name: False}), tokenizer)
        assert caught.value.param == "chat_template_kwargs"
