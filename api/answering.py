"""A job's way through the gateway and back: streamed, or gathered into one body."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from litestar import Request, Response
from litestar.datastructures import State
from litestar.response import Stream
from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec import Struct

from api.auth import add_headers
from api.errors import ApiError, ClientGoneError, InvalidRequestError
from api.generation import Generation, output_lost
from api.metrics import JobObserver
from api.response_api.stream import response_events
from api.sending import past_the_layers
from api.services import Services
from api.settings import ApiSettings
from api.sse import HEADERS, stream
from api.stream_extras import with_extras
from api.writing import response_writer_of, whole_body, writer_of
from worker.wire.messages import Delta, Finished, GenerateJob
from worker.wire.queueing import Terms

T = TypeVar("T")

AnyRequest = Request[Any, Any, State]


async def answer(
    request: AnyRequest,
    services: Services,
    job: GenerateJob,
    priority: str,
    terms: Terms,
) -> Response[Any]:
    """Submit a job and return its answer; the status waits for the worker's word on the request."""
    observer = JobObserver(services.metrics, job)
    try:
        generation = await services.gateway.submit(job, priority, terms)
        if generation.is_joined:
            observer.mute()
        name_job(request, generation.job_id, is_joined=generation.is_joined)
        return await _respond(request, services, generation, observer)
    except ApiError as error:
        if not isinstance(error, ClientGoneError):
            observer.fail(error)
        raise
    finally:
        if not observer.is_handed_over:
            observer.end()


async def follow(
    request: AnyRequest,
    services: Services,
    job_id: str,
    tenant: str,
    after: int,
) -> Response[Any]:
    """Stream a job that is there already, from the event after the one whose id is `after`."""
    generation = await services.gateway.follow(job_id, tenant)
    observer = JobObserver(services.metrics, generation.job)
    observer.mute()
    try:
        if not generation.record.response and after >= generation.next_index:
            raise output_lost()  # no client has seen what the log does not hold, but for a crash
        return await _open_stream(request, services, generation, observer, after)
    finally:
        if not observer.is_handed_over:
            generation.close()


def name_job(request: AnyRequest, job_id: str, *, is_joined: bool) -> None:
    """Say in the answer's head which job it is of, and whether that was there before."""
    replayed = {"Idempotent-Replayed": "true"} if is_joined else {}
    add_headers(request, {"X-Job-Id": job_id, **replayed})


async def _respond(
    request: AnyRequest, services: Services, generation: Generation, observer: JobObserver
) -> Response[Any]:
    try:
        if generation.job.stream:
            after = -1
            if generation.is_joined:  # sent again by a client whose stream was cut
                after = event_index(request.headers.get("last-event-id"))
            return await _open_stream(request, services, generation, observer, after)
        return Response(await unless_gone(request, _gather(generation, observer)))
    finally:
        if not observer.is_handed_over:
            generation.close()


async def _open_stream(
    request: AnyRequest,
    services: Services,
    generation: Generation,
    observer: JobObserver,
    after: int,
) -> Response[Any]:
    settings = services.settings
    # A busy queue must not look like a dead server: after a while the stream opens anyway.
    await unless_gone(request, generation.wait_accepted(settings.accept_patience_s))
    if after >= 0:
        services.metrics.stream_resumes.labels(generation.job.model).inc()
    observer.is_handed_over = True
    events = _events(generation, observer, settings, after)
    return EventStream(events, on_end=lambda: _end(generation, observer))


def event_index(given: str | None) -> int:
    """Return the index of the last delta that a client has, by its Last-Event-ID; -1 for none."""
    if given is None or not given.strip():
        return -1
    if not given.isascii() or not given.isdigit() or len(given) > 18:
        raise InvalidRequestError(
            "Last-Event-ID must be an id of this job's events.", code="invalid_header"
        )
    return int(given)


def _end(generation: Generation, observer: JobObserver) -> None:
    observer.end()
    generation.close()


async def _gather(generation: Generation, observer: JobObserver) -> Struct:
    deltas: list[Delta] = []
    while True:
        events = await generation.take()
        observer.see(events)
        for event in events:
            match event:
                case Delta():
                    deltas.append(event)
                case Finished():
                    return whole_body(generation.job, generation.record, deltas, event)


def _events(
    generation: Generation, observer: JobObserver, settings: ApiSettings, after: int
) -> AsyncIterator[bytes]:
    """Return the events of the endpoint that the job was meant for."""
    job, record = generation.job, generation.record
    if record.response:
        writer = response_writer_of(job, record)
        return response_events(generation, writer, observer, settings, after)
    return stream(
        generation, with_extras(writer_of(job, record), generation), observer, settings, after
    )


async def unless_gone(request: AnyRequest, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, but raise ClientGoneError as soon as there is no client to do it for."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Stream):
    """A stream that says when it is over, even where it never began.

    A client that leaves early can get the generator cancelled before its first line, and then its
    `finally` does not run.
    """

    def __init__(self, content: Any, *, on_end: Callable[[], None]) -> None:
        super().__init__(content, media_type="text/event-stream", headers=HEADERS)
        self._on_end = on_end

    def to_asgi_response(self, *args: Any, **kwargs: Any) -> Any:
        response: ASGIApp = super().to_asgi_response(*args, **kwargs)

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await response(scope, receive, past_the_layers(scope, send))
            finally:
                self._on_end()

        return respond
