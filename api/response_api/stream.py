"""A response as server-sent events, from its beginning or after an event that the client has."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable

import msgspec

from api.errors import ApiError
from api.generation import Generation
from api.metrics import JobObserver
from api.response_api.objects import Event
from api.response_api.writer import ResponseWriter
from api.settings import ApiSettings
from api.sse import PING, waiting
from worker.wire.messages import Delta, Finished

logger = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode


async def response_events(
    generation: Generation,
    writer: ResponseWriter,
    observer: JobObserver,
    settings: ApiSettings,
    after: int = -1,
) -> AsyncIterator[bytes]:
    """Yield the events whose `sequence_number` is above `after`; a fault is the last of them."""
    try:
        yield _written(writer.begin(), after)
        while not generation.is_accepted:
            yield waiting(generation)
            await generation.wait_accepted(settings.queue_comment_s)
        has_finished = False
        while not has_finished:
            events = await generation.take(settings.ping_s)
            observer.see(events)
            has_finished = bool(events) and isinstance(events[-1], Finished)
            written = [one for event in events for one in _events_of(event, writer)]
            yield _written(written, after) or PING
    except ApiError as error:
        observer.fail(error)
        yield _written([writer.fail(error)], after)
    except Exception:  # the request's boundary: the status line has left long ago
        logger.exception("stream of %s failed", generation.job_id)
        yield _written([writer.fail(ApiError("The server failed while it streamed."))], after)
    finally:
        observer.end()
        generation.close()


def _events_of(event: Delta | Finished, writer: ResponseWriter) -> list[Event]:
    return writer.write(event) if isinstance(event, Delta) else writer.end(event)


def _written(events: Iterable[Event], after: int) -> bytes:
    return b"".join(
        b"id: %d\nevent: %b\ndata: %b\n\n"
        % (event.sequence_number, event.type.encode(), _encode(event))
        for event in events
        if event.sequence_number > after
    )
