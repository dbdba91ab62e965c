"""A job's deltas as the items and events of a response."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET

from api.errors import ApiError
from api.logprobs import chat_logprobs_body
from api.response_api.objects import (
    ArgumentsDelta,
    ArgumentsDone,
    Asked,
    CallItem,
    Event,
    IncompleteDetails,
    Item,
    ItemEvent,
    MessageItem,
    OutputText,
    PartEvent,
    ResponseBody,
    ResponseError,
    ResponseEvent,
    TextDelta,
    TextDone,
    response_usage,
)
from api.responses import ChatTokenLogprob, metrics_body
from api.tool_calls import CallPiece, Content, Piece, ToolCallReader
from worker.wire.messages import Chat, Delta, Finished, GenerateJob

_ENDS = {"length": ("incomplete", "max_output_tokens")}


class ResponseWriter:
    """Remembers what a response holds so far, and what each delta changes of it.

    All but `completed_at` is a function of the job and its deltas, ids and sequence numbers too:
    whoever reads the log a second time, in whichever process, writes the same events.
    """

    def __init__(self, job: GenerateJob, asked: Asked, ended_at: float | None = None) -> None:
        """`ended_at`: Unix time, where the job has ended before this is written."""
        self._job = job
        self._ended_at = ended_at
        self._asked = asked
        may_call = isinstance(job.input, Chat) and job.input.tools is not None
        self._reader = ToolCallReader() if may_call else None
        self._items: list[Item] = []
        self._text = ""
        self._logprobs: list[ChatTokenLogprob] = []
        self._unsaid: list[ChatTokenLogprob] = []  # of tokens whose text is still held back
        self._num_events = 0
        self._reason = "stop"

    def body(self, status: str, finished: Finished | None = None) -> ResponseBody:
        """The response as it stands."""
        return ResponseBody(
            **msgspec.structs.asdict(self._asked),
            id=self._job.job_id,
            created_at=int(self._job.created),
            completed_at=int(self._ended_at or time.time()) if status == "completed" else None,
            status=status,
            incomplete_details=IncompleteDetails(_ENDS[self._reason][1])
            if status == "incomplete"
            else None,
            model=self._job.model,
            output=list(self._items),
            usage=None if finished is None else response_usage(finished.usage),
            metrics=UNSET if finished is None else metrics_body(finished),
        )

    def begin(self) -> list[Event]:
        """What a stream says before the first token."""
        early = ("queued",) if self._asked.background else ()
        return [
            self._state(
                kind, "queued" if kind in ("created", "queued") and early else "in_progress"
            )
            for kind in ("created", *early, "in_progress")
        ]

    def write(self, delta: Delta) -> list[Event]:
        is_last = delta.finish_reason is not None
        self._reason = delta.finish_reason or self._reason
        pieces: list[Piece] = [Content(delta.text)] if delta.text else []
        if self._reader is not None:
            pieces = self._reader.read(delta.text, is_last=is_last)
        num_top = self._job.sampling.logprobs
        if num_top is not None:
            self._unsaid += chat_logprobs_body(delta.logprobs or (), num_top).content
        return [event for piece in pieces for event in self._write(piece)]

    def end(self, finished: Finished) -> list[Event]:
        """What a stream says in the end; an answer without a word is an empty message."""
        closing = list(self._end_with(finished))
        status = self._end_status
        return [*closing, self._state(status, status, finished)]

    def whole(self, deltas: Iterable[Delta], finished: Finished) -> ResponseBody:
        """All of a response at once."""
        for delta in deltas:
            self.write(delta)
        list(self._end_with(finished))
        return self.body(self._end_status, finished)

    def fail(self, error: ApiError) -> ResponseEvent:
        """What a stream says instead where the answer broke down."""
        return ResponseEvent(
            type="response.failed",
            sequence_number=self._next_number(),
            response=self.failed(error),
        )

    def failed(self, error: ApiError) -> ResponseBody:
        details = ResponseError(error.code or "server_error", error.message)
        return msgspec.structs.replace(self.body("failed"), error=details)

    @property
    def _end_status(self) -> str:
        return _ENDS.get(self._reason, ("completed", ""))[0]

    def _end_with(self, finished: Finished) -> Iterator[Event]:
        if not self._items:
            yield from self._open_message()
        yield from self._close(self._end_status)

    def _write(self, piece: Piece) -> Iterator[Event]:
        if isinstance(piece, CallPiece):
            yield from self._write_call(piece)
            return
        if not self._items or not isinstance(self._items[-1], MessageItem):
            yield from self._close("completed")
            yield from self._open_message()
        logprobs, self._unsaid = self._unsaid, []
        self._text += piece.text
        self._logprobs += logprobs
        yield TextDelta(
            sequence_number=self._next_number(), **self._place, delta=piece.text, logprobs=logprobs
        )

    def _write_call(self, piece: CallPiece) -> Iterator[Event]:
        if piece.name is not None:
            yield from self._close("completed")
            call_id = self._name("call", len(self._items))
            item = CallItem(id=self._name("fc", len(self._items)), call_id=call_id, name=piece.name)
            yield self._add(item)
        self._unsaid = []  # of tokens that are no text
        self._text += piece.arguments
        if piece.arguments:
            yield ArgumentsDelta(
                sequence_number=self._next_number(), **self._place, delta=piece.arguments
            )

    def _open_message(self) -> Iterator[Event]:
        yield self._add(MessageItem(id=self._name("msg", len(self._items))))
        yield PartEvent(
            type="response.content_part.added",
            sequence_number=self._next_number(),
            **self._place,
            part=OutputText(),
        )

    def _add(self, item: Item) -> ItemEvent:
        self._items.append(item)
        self._text, self._logprobs = "", []
        return self._item_event("added")

    def _close(self, status: str) -> Iterator[Event]:
        """End the item under way, if there is one."""
        if not self._items or self._items[-1].status != "in_progress":
            return
        if isinstance(self._items[-1], MessageItem):
            yield from self._close_message(self._items[-1], status)
        else:
            yield from self._close_call(self._items[-1], status)
        yield self._item_event("done")

    def _close_message(self, item: MessageItem, status: str) -> Iterator[Event]:
        part = OutputText(text=self._text, logprobs=self._logprobs)
        self._items[-1] = msgspec.structs.replace(item, status=status, content=[part])
        yield TextDone(
            sequence_number=self._next_number(),
            **self._place,
            text=self._text,
            logprobs=self._logprobs,
        )
        yield PartEvent(
            type="response.content_part.done",
            sequence_number=self._next_number(),
            **self._place,
            part=part,
        )

    def _close_call(self, item: CallItem, status: str) -> Iterator[Event]:
        self._items[-1] = msgspec.structs.replace(item, status=status, arguments=self._text)
        yield ArgumentsDone(
            sequence_number=self._next_number(),
            **self._place,
            name=item.name,
            arguments=self._text,
        )

    def _state(self, kind: str, status: str, finished: Finished | None = None) -> ResponseEvent:
        return ResponseEvent(
            type=f"response.{kind}",
            sequence_number=self._next_number(),
            response=self.body(status, finished),
        )

    def _item_event(self, what: str) -> ItemEvent:
        return ItemEvent(
            type=f"response.output_item.{what}",
            sequence_number=self._next_number(),
            output_index=len(self._items) - 1,
            item=self._items[-1],
        )

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1].id, "output_index": len(self._items) - 1}

    def _next_number(self) -> int:
        number = self._num_events
        self._num_events += 1
        return number

    def _name(self, kind: str, index: int) -> str:
        name = f"{self._job.job_id}:{index}"
        return f"{kind}_{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"
