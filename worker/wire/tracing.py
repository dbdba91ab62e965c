"""Traces of OpenTelemetry, where the operator's OTEL_* variables ask for them.

Without those nothing of it is imported, and every place that could make a span holds None instead.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.wire.otel import Tracing

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

_CONTEXT: ContextVar[dict[str, str] | None] = ContextVar("trace_context", default=None)


def set_trace_context(carrier: dict[str, str]) -> None:
    """Say which span the running task's work belongs to, as W3C headers."""
    _CONTEXT.set(carrier)


def trace_context() -> dict[str, str]:
    """Return the W3C headers of the running task's span; empty where there is none."""
    return _CONTEXT.get() or {}


def are_traces_wanted(environ: Mapping[str, str]) -> bool:
    """Say whether the operator names a collector and has not switched traces off."""
    is_off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    is_off = is_off or environ.get("OTEL_TRACES_EXPORTER", "").strip() == "none"
    return not is_off and any(environ.get(name, "").strip() for name in ENDPOINTS)


def open_tracing(part: str, instance: str) -> Tracing | None:
    """Return what makes spans; None where nobody asks for them, or they cannot be sent.

    `part` and `instance` name this process in them. Whoever opens it closes it.
    """
    if not are_traces_wanted(os.environ):
        return None
    protocol = next(filter(None, map(os.environ.get, PROTOCOLS)), "http/protobuf")
    if protocol != "http/protobuf":
        log.warning("no traces: they are sent as http/protobuf alone, not as %s", protocol)
        return None
    try:
        from worker.wire.otel import Tracing
    except ModuleNotFoundError as error:
        log.warning("no traces: %s; pip install 'dfastllm[otel]'", error)
        return None
    log.info("traces go to the OpenTelemetry collector")
    return Tracing(f"dfastllm-{part}", instance)
