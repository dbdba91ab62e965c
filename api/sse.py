"""The answer as server-sent events, written as bytes: this is the path of every token."""

from __future__ import annotations

import logging
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
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


async def stream(
    generation: Generation, writer: Writer, observer: JobObserver, settings: ApiSettings
) -> AsyncIterator[bytes]:
    """Yield the events of one answer; a fault after the start is an event, too."""
    try:
        while not generation.is_accepted:
            yield b": queued, position %d\n\n" % generation.position
            await generation.wait_accepted(settings.queue_comment_s)
        has_finished = False
        while not has_finished:
            events = await generation.take(settings.ping_s)
            observer.see(events)
            has_finished = bool(events) and isinstance(events[-1], Finished)
            if data := _write(events, writer):
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


def _write(events: list[Delta | Finished], writer: Writer) -> bytes:
    """Return the bytes of all that came together, to be sent at once."""
    parts: list[bytes] = []
    for event in events:
        if isinstance(event, Delta):
            # The id goes on a delta's last chunk: who has seen it has seen the whole delta.
            chunks = writer.chunks(event)
            parts += [_event(chunk) for chunk in chunks[:-1]]
            parts += [b"id: %d\n" % event.index + _event(chunk) for chunk in chunks[-1:]]
        elif (chunk := writer.last_chunk(event)) is not None:
            parts.append(_event(chunk))
    return b"".join(parts)


def _event(body: msgspec.Struct) -> bytes:
    return b"data: %b\n\n" % _encode(body)
