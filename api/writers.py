"""Deltas and endings into OpenAI's bodies and chunks: one writer an endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import UNSET, Struct, UnsetType

from api.logprobs import TextLogprobsWriter, chat_logprobs_body
from api.responses import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    Completion,
    TextChoice,
    UsageBody,
    metrics_body,
    usage_body,
)
from worker.wire.job_record import JobRecord
from worker.wire.messages import Delta, Finished, GenerateJob, TokenLogprob


@dataclass(slots=True)
class GatheredChoice:
    """All of one choice, for an answer in one piece."""

    index: int
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    holes: list[str] | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or ()
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.holes = self.holes if delta.holes is None else delta.holes


class Writer(Protocol):
    """Writes one request's answer, whole or in chunks. It remembers which choices it has begun."""

    def chunks(self, delta: Delta) -> list[Struct]:
        """Return what to stream for a delta: nothing where a client would see nothing."""
        ...

    def shows_text_alone(self, delta: Delta) -> bool:
        """Say whether a delta makes one chunk, like the others of its choice but for the text."""
        ...

    def last_chunk(self, finished: Finished) -> Struct | None: ...

    def body(self, choices: Sequence[GatheredChoice], finished: Finished) -> Struct: ...


class ChatWriter:
    """Writes chat.completion and chat.completion.chunk."""

    def __init__(self, job: GenerateJob, record: JobRecord) -> None:
        self._job = job
        self._record = record
        self._begun: set[int] = set()
        self._no_usage: UnsetType | None = None if record.include_usage else UNSET

    def chunks(self, delta: Delta) -> list[Struct]:
        chunks: list[Struct] = []
        if delta.choice not in self._begun:
            self._begun.add(delta.choice)
            role = ChatDelta(role="assistant", content="")
            chunks.append(self._chunk([ChatChunkChoice(index=delta.choice, delta=role)]))
        return chunks + [self._chunk([choice]) for choice in self.choices(delta)]

    def choices(self, delta: Delta) -> list[ChatChunkChoice]:
        """What a client sees of a delta; each goes into a chunk of its own."""
        return [self._choice(delta)] if _shows(delta, self._record) else []

    def shows_text_alone(self, delta: Delta) -> bool:
        return delta.choice in self._begun and _is_text_alone(delta, self._job, self._record)

    def last_chunk(self, finished: Finished) -> Struct | None:
        if not self._record.include_usage:
            return None
        chunk = self._chunk([], usage_body(finished))
        chunk.metrics = metrics_body(finished)
        return chunk

    def body(self, choices: Sequence[GatheredChoice], finished: Finished) -> Struct:
        return ChatCompletion(
            id=self._job.job_id,
            created=int(self._job.created),
            model=self._job.model,
            system_fingerprint=self._record.system_fingerprint,
            service_tier=self._record.service_tier or UNSET,
            choices=[self.whole(choice) for choice in choices],
            usage=usage_body(finished),
            metrics=metrics_body(finished),
        )

    def whole(self, choice: GatheredChoice) -> ChatChoice:
        """All of one choice."""
        num_top = self._job.sampling.logprobs
        return ChatChoice(
            index=choice.index,
            message=AssistantMessage(choice.text),
            logprobs=None if num_top is None else chat_logprobs_body(choice.logprobs, num_top),
            finish_reason=choice.finish_reason,
            token_ids=choice.token_ids if self._record.return_token_ids else UNSET,
        )

    def _choice(self, delta: Delta) -> ChatChunkChoice:
        num_top = self._job.sampling.logprobs
        has_logprobs = num_top is not None and delta.logprobs is not None
        return ChatChunkChoice(
            index=delta.choice,
            delta=ChatDelta(content=delta.text) if delta.text else ChatDelta(),
            logprobs=chat_logprobs_body(delta.logprobs or (), num_top or 0)
            if has_logprobs
            else None,
            finish_reason=delta.finish_reason,
            token_ids=delta.token_ids if self._record.return_token_ids else UNSET,
        )

    def _chunk(self, choices: list[ChatChunkChoice], usage: UsageBody | None = None) -> ChatChunk:
        return ChatChunk(
            id=self._job.job_id,
            created=int(self._job.created),
            model=self._job.model,
            system_fingerprint=self._record.system_fingerprint,
            service_tier=self._record.service_tier or UNSET,
            choices=choices,
            usage=self._no_usage if usage is None else usage,
        )


class TextWriter:
    """Writes text_completion, whole and in chunks."""

    def __init__(self, job: GenerateJob, record: JobRecord) -> None:
        self._job = job
        self._record = record
        self._logprobs: dict[int, TextLogprobsWriter] = {}
        self._no_usage: UnsetType | None = None if record.include_usage else UNSET

    def chunks(self, delta: Delta) -> list[Struct]:
        if not _shows(delta, self._record):
            return []
        choice = GatheredChoice(delta.choice)
        choice.add(delta)
        return [self._completion([self._choice(choice)], self._no_usage)]

    def shows_text_alone(self, delta: Delta) -> bool:
        return _is_text_alone(delta, self._job, self._record)

    def last_chunk(self, finished: Finished) -> Struct | None:
        if not self._record.include_usage:
            return None
        return self.body([], finished)

    def body(self, choices: Sequence[GatheredChoice], finished: Finished) -> Struct:
        completion = self._completion(
            [self._choice(choice) for choice in choices], usage_body(finished)
        )
        completion.metrics = metrics_body(finished)
        return completion

    def _choice(self, choice: GatheredChoice) -> TextChoice:
        num_top = self._job.sampling.logprobs
        logprobs = None
        if num_top is not None:
            writer = self._logprobs.setdefault(choice.index, TextLogprobsWriter(num_top))
            logprobs = writer.write(choice.logprobs)
        return TextChoice(
            index=choice.index,
            text=choice.text,
            logprobs=logprobs,
            finish_reason=choice.finish_reason,
            token_ids=choice.token_ids if self._record.return_token_ids else UNSET,
            holes=UNSET if choice.holes is None else choice.holes,
        )

    def _completion(
        self, choices: list[TextChoice], usage: UsageBody | UnsetType | None
    ) -> Completion:
        return Completion(
            id=self._job.job_id,
            created=int(self._job.created),
            model=self._job.model,
            system_fingerprint=self._record.system_fingerprint,
            service_tier=self._record.service_tier or UNSET,
            choices=choices,
            usage=usage,
        )


def _shows(delta: Delta, record: JobRecord) -> bool:
    """Say whether a client sees anything of a delta: half a character is no text yet."""
    has_ids = record.return_token_ids and bool(delta.token_ids)
    return bool(delta.text or delta.finish_reason or delta.logprobs) or has_ids


def _is_text_alone(delta: Delta, job: GenerateJob, record: JobRecord) -> bool:
    has_more = delta.finish_reason or delta.holes is not None or delta.trace is not None
    wants_more = record.return_token_ids or job.sampling.logprobs is not None
    return bool(delta.text) and not has_more and not wants_more
