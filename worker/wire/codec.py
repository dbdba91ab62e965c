"""One msgpack encoder, and one typed decoder for each thing that is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from worker.wire.job_record import JobRecord
from worker.wire.messages import (
    WIRE_VERSION,
    Delta,
    Event,
    Frame,
    GenerateJob,
    LogEntry,
    ModelInfo,
    WorkerInfo,
)

_encoder = msgspec.msgpack.Encoder()
_job = msgspec.msgpack.Decoder(GenerateJob)
_frame = msgspec.msgpack.Decoder(Frame)
_log_entry = msgspec.msgpack.Decoder(LogEntry)
_event: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)
_worker_info = msgspec.msgpack.Decoder(WorkerInfo)
_model_info = msgspec.msgpack.Decoder(ModelInfo)
_job_record = msgspec.msgpack.Decoder(JobRecord)

UnreadableError = msgspec.DecodeError
"""What every decoder here raises for bytes that are not the message."""

encode = _encoder.encode
decode_frame = _frame.decode
decode_log_entry = _log_entry.decode
decode_event = _event.decode
decode_worker_info = _worker_info.decode
decode_model_info = _model_info.decode
decode_job_record = _job_record.decode


def for_lua(message: object) -> msgspec.Raw:
    """Return a message, packed, as a part of a script's arguments.

    Redis' msgpack for Lua is older than the type for bytes, so they go as a string's.
    """
    return _as_string(message if isinstance(message, bytes) else encode(message))


def decode_job(data: bytes) -> GenerateJob:
    """Read a job; one of a newer, incompatible wire version is unreadable too."""
    job = _job.decode(data)
    if job.v > WIRE_VERSION:
        raise msgspec.ValidationError(f"wire version {job.v}, this side speaks {WIRE_VERSION}")
    return job


def deltas_of(entries: Iterable[Any], from_index: int = 0) -> list[Delta]:
    """Return the deltas in a log's entries from `from_index` on, each once, in order."""
    deltas: list[Delta] = []
    for _, fields in entries:
        for delta in decode_log_entry(fields[b"d"]).deltas:
            # A worker that was not sure whether Redis had got an entry logs its deltas again.
            if delta.index >= from_index:
                deltas.append(delta)
                from_index = delta.index + 1
    return deltas


def _as_string(data: bytes) -> msgspec.Raw:
    length = len(data)
    for prefix, size in ((b"\xd9", 1), (b"\xda", 2), (b"\xdb", 4)):
        if length < 1 << 8 * size:
            return msgspec.Raw(prefix + length.to_bytes(size, "big") + data)
    raise ValueError(f"{length} bytes are too many for one message")
