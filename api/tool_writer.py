"""Answers that may call functions, in OpenAI's shape."""

from __future__ import annotations

import hashlib

import msgspec
from msgspec import UNSET

from api.responses import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    FunctionCall,
    FunctionCallDelta,
    ToolCallBody,
    ToolCallDelta,
)
from api.tool_calls import Content, Piece, ToolCallReader, gathered
from api.writers import ChatWriter, GatheredChoice
from worker.wire.job_record import JobRecord
from worker.wire.messages import Chat, Delta, GenerateJob


class ToolChatWriter(ChatWriter):
    """Writes the calls in a choice's text as calls, and the rest as content."""

    def __init__(self, job: GenerateJob, record: JobRecord) -> None:
        super().__init__(job, record)
        assert isinstance(job.input, Chat)
        assert job.input.tools is not None
        self._job_id = job.job_id
        self._is_named = bool(job.input.tools.forced)
        self._readers: dict[int, ToolCallReader] = {}

    def shows_text_alone(self, delta: Delta) -> bool:
        return False

    def choices(self, delta: Delta) -> list[ChatChunkChoice]:
        """Each piece is a choice of its own; what else a delta brings goes with the last."""
        reader = self._readers.setdefault(delta.choice, ToolCallReader())
        pieces = reader.read(delta.text, is_last=delta.finish_reason is not None)
        early = [
            ChatChunkChoice(index=delta.choice, delta=self._delta(delta.choice, piece))
            for piece in pieces
        ]
        rest = super().choices(msgspec.structs.replace(delta, text=""))
        if not rest:
            return early
        last = early.pop().delta if early else ChatDelta()
        reason = self._reason(delta.finish_reason, reader.num_calls)
        return [*early, msgspec.structs.replace(rest[0], delta=last, finish_reason=reason)]

    def whole(self, choice: GatheredChoice) -> ChatChoice:
        content, calls = gathered(choice.text)
        body = super().whole(choice)
        if not calls:
            return body
        tool_calls = [
            ToolCallBody(
                self._call_id(choice.index, index),
                FunctionCall(call.name, "".join(call.arguments)),
            )
            for index, call in enumerate(calls)
        ]
        return msgspec.structs.replace(
            body,
            message=AssistantMessage(content or None, tool_calls=tool_calls),
            finish_reason=self._reason(choice.finish_reason, len(calls)),
        )

    def _delta(self, choice: int, piece: Piece) -> ChatDelta:
        if isinstance(piece, Content):
            return ChatDelta(content=piece.text)
        is_first = piece.name is not None
        function = FunctionCallDelta(
            name=UNSET if piece.name is None else piece.name, arguments=piece.arguments
        )
        call = ToolCallDelta(
            index=piece.index,
            id=self._call_id(choice, piece.index) if is_first else UNSET,
            type="function" if is_first else UNSET,
            function=function,
        )
        return ChatDelta(tool_calls=[call])

    def _reason(self, reason: str | None, num_calls: int) -> str | None:
        # Who names the function has asked for nothing else: OpenAI says "stop" then.
        is_called = reason == "stop" and num_calls > 0 and not self._is_named
        return "tool_calls" if is_called else reason

    def _call_id(self, choice: int, index: int) -> str:
        """A function of the job, so that another process, or a second reading, says the same."""
        name = f"{self._job_id}:{choice}:{index}"
        return f"call_{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}"
