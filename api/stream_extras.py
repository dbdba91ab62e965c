"""What a client may ask to see in a stream beside the text."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from api.generation import Generation
from api.responses import (
    ChatChunk,
    Completion,
    DiffusionMeta,
    DraftEvent,
    TextChoice,
    UsageBody,
)
from api.writers import GatheredChoice, Writer
from worker.wire.messages import Delta, Finished, Trace

PADDING = 32  # chunks of about as many letters of text cannot be told apart by their length


def with_extras(writer: Writer, generation: Generation) -> Writer:
    """Return a writer that shows what the request has asked to see."""
    record = generation.record
    if record.diffusing:
        writer = SnapshotWriter(writer)
    if record.continuous_usage or record.obfuscation or record.draft_events:
        writer = ExtrasWriter(writer, generation)
    return writer


class _Around:
    """A writer around another, whose chunks it changes; the rest is the other's."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def shows_text_alone(self, delta: Delta) -> bool:
        return False

    def last_chunk(self, finished: Finished) -> Struct | None:
        return self._writer.last_chunk(finished)

    def body(self, choices: Sequence[GatheredChoice], finished: Finished) -> Struct:
        return self._writer.body(choices, finished)


class ExtrasWriter(_Around):
    """Adds usage so far, what was drafted, and padding that hides how long a chunk's text is."""

    def __init__(self, writer: Writer, generation: Generation) -> None:
        super().__init__(writer)
        self._generation = generation
        self._record = generation.record
        self._num_output = 0
        self._drafts: list[DraftEvent] = []  # not yet shown: their tokens were half a character

    def chunks(self, delta: Delta) -> list[Struct]:
        self._num_output += len(delta.token_ids)
        if self._record.draft_events and delta.trace is not None and delta.trace.drafted:
            self._drafts.append(_draft_event(delta.choice, delta.trace))
        chunks = self._writer.chunks(delta)
        for chunk in chunks:
            assert isinstance(chunk, ChatChunk | Completion)
            self._add(chunk)
        if chunks and self._drafts:
            last = chunks[-1]
            assert isinstance(last, ChatChunk | Completion)
            last.draft_events, self._drafts = self._drafts, []
        return chunks

    def _add(self, chunk: ChatChunk | Completion) -> None:
        num_prompt = self._generation.num_prompt_tokens
        if self._record.continuous_usage and num_prompt is not None:
            chunk.usage = UsageBody(num_prompt, self._num_output, num_prompt + self._num_output)
        if self._record.obfuscation:
            chunk.obfuscation = _padding(chunk)


class SnapshotWriter(_Around):
    """Writes each choice's whole text, with masks where none is yet, instead of what is new in it.

    The shape is Inception's (Mercury): a last, empty chunk says why it ended.
    """

    def __init__(self, writer: Writer) -> None:
        super().__init__(writer)
        self._texts: dict[int, str] = {}

    def chunks(self, delta: Delta) -> list[Struct]:
        text = self._texts[delta.choice] = self._texts.get(delta.choice, "") + delta.text
        is_last = delta.finish_reason is not None
        # What was revealed behind the end is not said.
        trace = Trace(progress=1.0) if is_last else delta.trace or Trace()
        shown = msgspec.structs.replace(
            delta, text=text + trace.pending, finish_reason=None, trace=None
        )
        chunks = self._writer.chunks(shown)
        for chunk in chunks:
            assert isinstance(chunk, ChatChunk | Completion)
            chunk.diffusion_meta = DiffusionMeta(diffusion_progress=trace.progress)
        if is_last:
            end = msgspec.structs.replace(delta, text="", token_ids=[], logprobs=None)
            chunks += self._writer.chunks(end)
        return chunks


def _draft_event(choice: int, trace: Trace) -> DraftEvent:
    return DraftEvent(choice=choice, drafted=trace.drafted, num_accepted=trace.num_accepted)


def _padding(chunk: ChatChunk | Completion) -> str:
    (choice,) = chunk.choices
    text = choice.text if isinstance(choice, TextChoice) else choice.delta.content or ""
    return secrets.token_hex(PADDING)[: max(1, PADDING - len(text) % PADDING)]
