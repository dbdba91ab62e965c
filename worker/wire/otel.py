"""The one place that knows OpenTelemetry's SDK; imported where traces are asked for."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Literal

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Attributes = Mapping[str, str | bool | int | float | Sequence[str]]
Kind = Literal["SERVER", "CONSUMER", "INTERNAL"]

CLOSE_S = 3.0  # a collector that is away must not hold up a process that is to stop

_w3c = TraceContextTextMapPropagator()


class Tracing:
    """One process's spans; a thread of the SDK's sends them, and drops what cannot be sent."""

    def __init__(self, service: str, instance: str) -> None:
        """Sampler, limits and where to send to are the SDK's to read from OTEL_* variables."""
        resource = Resource.create({SERVICE_INSTANCE_ID: instance})
        # A name that the operator gives wins over ours; the SDK's word for "none given" does not.
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: service}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("dfastllm", version("opentelemetry-sdk"))

    def begin(
        self,
        name: str,
        parent: Mapping[str, str],
        kind: Kind = "INTERNAL",
        attributes: Attributes | None = None,
        start_s: float | None = None,
    ) -> OpenSpan:
        """Begin a span under the W3C headers `parent`, now or at a Unix time in seconds.

        Where they name no span, or none that can be read, it begins a trace of its own.
        """
        context = _w3c.extract(parent, context=Context())
        span = self._tracer.start_span(
            name, context, SpanKind[kind], attributes, start_time=_nanoseconds(start_s)
        )
        return OpenSpan(span)

    def close(self) -> None:
        """Send what is left, for as long as a stopping process may wait."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_S)


class OpenSpan:
    """A span that has not ended; `carrier` makes others its children, in any process."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self.carrier: dict[str, str] = {}
        _w3c.inject(self.carrier, set_span_in_context(span, Context()))

    def end(
        self,
        attributes: Attributes | None = None,
        *,
        name: str | None = None,
        error: str | None = None,
        end_s: float | None = None,
    ) -> None:
        """End it, now or at a Unix time in seconds; `error` says in a word what our fault was."""
        if name is not None:
            self._span.update_name(name)
        self._span.set_attributes(attributes or {})
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(_nanoseconds(end_s))


def _nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1e9)
