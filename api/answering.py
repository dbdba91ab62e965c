"""A job's way through the gateway and back: streamed, or gathered into one body."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from litestar import Request, Response
from litestar.datastructures import State
from litestar.response import Stream
from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec import Struct

from api.errors import ApiError, ClientGoneError
from api.generation import Generation
from api.metrics import JobObserver
from api.sending import past_the_layers
from api.services import Services
from api.sse import HEADERS, stream
from api.writers import GatheredChoice, Writer
from worker.wire.messages import Delta, Finished, GenerateJob

T = TypeVar("T")

AnyRequest = Request[Any, Any, State]


async def answer(
    request: AnyRequest, services: Services, job: GenerateJob, priority: str, writer: Writer
) -> Response[Any]:
    """Submit a job and return its answer; the status waits for the worker's word on the request."""
    observer = JobObserver(services.metrics, job)
    try:
        generation = await services.gateway.submit(job, priority)
        return await _respond(request, services, generation, writer, observer)
    except ApiError as error:
        if not isinstance(error, ClientGoneError):
            observer.fail(error)
        raise
    finally:
        if not observer.is_handed_over:
            observer.end()


async def _respond(
    request: AnyRequest,
    services: Services,
    generation: Generation,
    writer: Writer,
    observer: JobObserver,
) -> Response[Any]:
    settings = services.settings
    try:
        if generation.job.stream:
            # A busy queue must not look like a dead server: after a while the stream opens anyway.
            await unless_gone(request, generation.wait_accepted(settings.accept_patience_s))
            observer.is_handed_over = True
            events = stream(generation, writer, observer, settings)
            return EventStream(events, on_end=lambda: _end(generation, observer))
        body = await unless_gone(request, _gather(generation, writer, observer))
        return Response(body)
    finally:
        if not observer.is_handed_over:
            generation.close()


def _end(generation: Generation, observer: JobObserver) -> None:
    observer.end()
    generation.close()


async def _gather(generation: Generation, writer: Writer, observer: JobObserver) -> Struct:
    choices: dict[int, GatheredChoice] = {}
    while True:
        events = await generation.take()
        observer.see(events)
        for event in events:
            match event:
                case Delta():
                    choice = choices.setdefault(event.choice, GatheredChoice(event.choice))
                    choice.add(event)
                case Finished():
                    return writer.body([choices[index] for index in sorted(choices)], event)


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
