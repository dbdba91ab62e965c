"""A chat as the model's template takes it."""

from __future__ import annotations

from typing import Any

import msgspec

from worker.engine_port import TokenizerPort
from worker.wire.messages import Chat, ChatMessage, ToolCall


def chat_prompt(chat: Chat, tokenizer: TokenizerPort) -> list[int]:
    """Render and tokenize a chat; raises InvalidRequestError where the template refuses it."""
    return tokenizer.apply_chat_template(
        [_turn(message) for message in chat.messages],
        chat.add_generation_prompt,
        tools=chat.tools.definitions if chat.tools else None,
        continue_final_message=chat.continue_final_message,
        variables=chat.template_variables,
    )


def _turn(message: ChatMessage) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_calls:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _call(call: ToolCall) -> dict[str, Any]:
    # Templates write arguments out themselves, and want them as values.
    arguments = msgspec.json.decode(call.arguments)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}
