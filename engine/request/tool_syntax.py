"""How a model writes its tool calls, as far as its chat template shows it."""

from __future__ import annotations

from typing import Any

HERMES = "hermes"
"""`<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>`: Hermes, Qwen 2.5 and 3."""


def tool_syntax_of(tokenizer: Any) -> str:
    """Return the syntax that a tokenizer's template teaches; "" where it has no place for tools.

    A template that asks for calls in a way that is not known here (XML parameters, special tokens)
    counts as one without tools: what it makes a model write could not be told from plain text.
    """
    if not tokenizer.chat_template:
        return ""
    # Some models have a template of its own for conversations with tools.
    template: str = tokenizer.get_chat_template(tools=[{}])
    is_hermes = "tools" in template and "<tool_call>" in template and "<function=" not in template
    return HERMES if is_hermes else ""
