"""The answer as server-sent events, written as bytes: this is the path of every token."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator

import msgspec

from api.errors import ApiError
from api.generation import Generation
from api.metrics import JobObserver
from api.settings import ApiSettings
from api.writers import Writer
from worker.wire.messages import Delta, Finished

logger = logging.getLogger(__name__)

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
# Without an empty line after it: to clients that remember event ids, OpenAI's among them, an empty
# line is an event, of no data.
PING = b": ping\n"
DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


async def stream(
    generation: Generation,
    writer: Writer,
    observer: JobObserver,
    settings: ApiSettings,
    after: int = -1,
) -> AsyncIterator[bytes]:
    """Yield the events of one answer, but for those up to the one whose id is `after`.

    A fault after the start is an event, too.
    """
    try:
        while not generation.is_accepted:
            yield waiting(generation)
            await generation.wait_accepted(settings.queue_comment_s)
        events_of = EventWriter(writer, after)
        has_finished = False
        while not has_finished:
            events = await generation.take(settings.ping_s)
            observer.see(events)
            has_finished = bool(events) and isinstance(events[-1], Finished)
            if data := events_of.write(events):
                yield data
            elif not events:
                yield PING
        yield DONE
    except ApiError as error:
        observer.fail(error)
        yield _event(error.body) + DONE
    except Exception:  # the request's boundary: the status line has left long ago
        logger.exception("stream of %s failed", generation.job_id)
        yield _event(ApiError("The server failed while it streamed this answer.").body) + DONE
    finally:
        observer.end()
        generation.close()


class EventWriter:
    """Deltas into bytes; of most chunks only the text is new, and only that is encoded again."""

    def __init__(self, writer: Writer, after: int = -1) -> None:
        """`after`: the last delta that the client has; what was before it is written unseen."""
        self._writer = writer
        self._after = after
        self._around_text: dict[int, tuple[bytes, bytes]] = {}  # by choice

    def write(self, events: list[Delta | Finished]) -> bytes:
        """Return the bytes of all that came together, to be sent at once."""
        parts: list[bytes] = []
        for event in events:
            if isinstance(event, Delta):
                parts += self._delta(event) if event.index > self._after else self._seen(event)
            elif (chunk := self._writer.last_chunk(event)) is not None:
                parts.append(_event(chunk))
        return b"".join(parts)

    def _delta(self, delta: Delta) -> list[bytes]:
        # The id goes on a delta's last chunk: who has seen it has seen the whole delta.
        if self._writer.shows_text_alone(delta):
            head, tail = self._around_text.get(delta.choice) or self._learn(delta)
            return [b"id: %d\n" % delta.index, head, _encode(delta.text), tail]
        chunks = self._writer.chunks(delta)
        parts = [_event(chunk) for chunk in chunks[:-1]]
        return parts + [b"id: %d\n" % delta.index + _event(chunk) for chunk in chunks[-1:]]

    def _seen(self, delta: Delta) -> list[bytes]:
        self._writer.chunks(delta)  # it counts what it writes
        return []

    def _learn(self, delta: Delta) -> tuple[bytes, bytes]:
        mark = uuid.uuid4().hex  # longer than any chance: no other field can hold it
        (chunk,) = self._writer.chunks(msgspec.structs.replace(delta, text=mark))
        head, tail = _event(chunk).split(_encode(mark))
        self._around_text[delta.choice] = head, tail
        return head, tail


def waiting(generation: Generation) -> bytes:
    """A comment for a client whose job waits for a worker."""
    words = f": queued, position {generation.position}"
    if generation.wait_s is not None:
        words += f", estimated start in {generation.wait_s:.0f} s"
    return words.encode() + b"\n"


def _event(body: msgspec.Struct) -> bytes:
    return b"data: %b\n\n" % _encode(body)
