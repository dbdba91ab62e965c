"""What a client may ask to see in every chunk of a stream beside the text."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from msgspec import Struct

from api.generation import Generation
from api.responses import ChatChunk, Completion, TextChoice, UsageBody
from api.writers import GatheredChoice, Writer
from worker.wire.messages import Delta, Finished

PADDING = 32  # chunks of about as many letters of text cannot be told apart by their length


def with_extras(writer: Writer, generation: Generation) -> Writer:
    """Return a writer that adds what the request's `stream_options` ask for."""
    record = generation.record
    has_extras = record.continuous_usage or record.obfuscation
    return ExtrasWriter(writer, generation) if has_extras else writer


class ExtrasWriter:
    """Adds usage so far, and padding that hides how long the text of a chunk is."""

    def __init__(self, writer: Writer, generation: Generation) -> None:
        self._writer = writer
        self._generation = generation
        self._num_output = 0

    def chunks(self, delta: Delta) -> list[Struct]:
        self._num_output += len(delta.token_ids)
        chunks = self._writer.chunks(delta)
        for chunk in chunks:
            assert isinstance(chunk, ChatChunk | Completion)
            if self._generation.record.obfuscation:
                chunk.obfuscation = _padding(chunk)
            num_prompt = self._generation.num_prompt_tokens
            if self._generation.record.continuous_usage and num_prompt is not None:
                chunk.usage = UsageBody(num_prompt, self._num_output, num_prompt + self._num_output)
        return chunks

    def shows_text_alone(self, delta: Delta) -> bool:
        return False

    def last_chunk(self, finished: Finished) -> Struct | None:
        return self._writer.last_chunk(finished)

    def body(self, choices: Sequence[GatheredChoice], finished: Finished) -> Struct:
        return self._writer.body(choices, finished)


def _padding(chunk: ChatChunk | Completion) -> str:
    (choice,) = chunk.choices
    text = choice.text if isinstance(choice, TextChoice) else choice.delta.content or ""
    return secrets.token_hex(PADDING)[: max(1, PADDING - len(text) % PADDING)]
