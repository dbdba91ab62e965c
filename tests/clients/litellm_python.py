"""LiteLLM against a running server: `python litellm_python.py http://127.0.0.1:8080`."""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import httpx
import litellm

BASE = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
NAME = httpx.get(f"{BASE}/v1/models").json()["data"][0]["id"]
MESSAGES = [{"role": "user", "content": "Tell me a story about a dog."}]
TO_US: dict[str, Any] = {"api_base": f"{BASE}/v1", "api_key": "-", "num_retries": 0}
litellm.suppress_debug_info = True

CHAT: dict[str, Any] = {
    **TO_US,
    "messages": MESSAGES,
    "max_tokens": 24,
    "temperature": 0,
    "extra_body": {"ignore_eos": True},
}
PROVIDERS = ("openai", "hosted_vllm")


def chat_whole_and_streamed(provider: str) -> None:
    whole = litellm.completion(model=f"{provider}/{NAME}", **CHAT)
    assert whole.usage.completion_tokens == 24, whole.usage
    options = {"include_usage": True}
    chunks = list(
        litellm.completion(model=f"{provider}/{NAME}", stream=True, stream_options=options, **CHAT)
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content, (text, whole)
    built = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    assert built.usage.completion_tokens == 24, built.usage


def chat_with_more_parameters(provider: str) -> None:
    answer = litellm.completion(
        model=f"{provider}/{NAME}", n=2, seed=7, top_p=0.9, stop=["\n\n\n"], logprobs=True,
        top_logprobs=2, presence_penalty=0.1, user="me", **CHAT,
    )  # fmt: skip
    assert len(answer.choices) == 2
    assert len(answer.choices[1].logprobs.content[0].top_logprobs) == 2


def structured_output(provider: str) -> None:
    schema = {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}},
        "required": ["yes"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    fields = {**CHAT, "extra_body": None, "max_tokens": 40}
    answer = litellm.completion(model=f"{provider}/{NAME}", response_format=wanted, **fields)
    assert set(json.loads(answer.choices[0].message.content)) == {"yes"}


def text_completion(provider: str) -> None:
    name = f"text-completion-openai/{NAME}" if provider == "openai" else f"{provider}/{NAME}"
    answer = litellm.text_completion(
        model=name, prompt="Once upon a time", max_tokens=8, temperature=0, **TO_US
    )
    assert answer.choices[0].text


def asynchronous(provider: str) -> None:
    async def ask() -> int:
        answers = await asyncio.gather(
            *(litellm.acompletion(model=f"{provider}/{NAME}", **CHAT) for _ in range(4))
        )
        return len({answer.choices[0].message.content for answer in answers})

    assert asyncio.run(ask()) == 1


def errors_have_their_class(provider: str) -> None:
    try:
        litellm.completion(model=f"{provider}/{NAME}", **(CHAT | {"temperature": 9}))
    except litellm.BadRequestError as error:
        assert "temperature" in str(error)
    else:
        raise AssertionError("temperature 9 was taken")
    try:
        litellm.completion(model=f"{provider}/nobody", **CHAT)
    except litellm.NotFoundError:
        pass
    else:
        raise AssertionError("an unknown model was taken")


def responses(provider: str) -> None:
    asked = {"input": "Once", "max_output_tokens": 8}
    answer = litellm.responses(model=f"{provider}/{NAME}", **asked, **TO_US)
    assert answer.output[0].content[0].text
    types = {
        event.type
        for event in litellm.responses(model=f"{provider}/{NAME}", stream=True, **asked, **TO_US)
    }
    assert "response.output_text.delta" in types or any("delta" in str(t) for t in types), types


CHECKS: tuple[Callable[[str], None], ...] = (
    chat_whole_and_streamed,
    chat_with_more_parameters,
    structured_output,
    text_completion,
    asynchronous,
    errors_have_their_class,
    responses,
)


def main() -> int:
    num_failed = 0
    print(f"litellm {version('litellm')}, openai {version('openai')}")
    for provider in PROVIDERS:
        for check in CHECKS:
            try:
                check(provider)
                print(f"passed  {provider}: {check.__name__}")
            except Exception:
                num_failed += 1
                print(f"FAILED  {provider}: {check.__name__}\n{traceback.format_exc()}")
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
