"""Which writer writes a job's answer, and the answer in one piece."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from api.response_api.objects import Asked
from api.response_api.writer import ResponseWriter
from api.tool_writer import ToolChatWriter
from api.writers import ChatWriter, GatheredChoice, TextWriter, Writer
from worker.wire.job_record import JobRecord
from worker.wire.messages import Chat, Delta, Finished, GenerateJob


def writer_of(job: GenerateJob, record: JobRecord) -> Writer:
    """Return the writer of the endpoint that a completion was meant for."""
    match job.input:
        case Chat(tools=None):
            return ChatWriter(job, record)
        case Chat():
            return ToolChatWriter(job, record)
        case _:
            return TextWriter(job, record)


def response_writer_of(
    job: GenerateJob, record: JobRecord, ended_at: float | None = None
) -> ResponseWriter:
    """Return the writer of a job that was meant for /v1/responses."""
    return ResponseWriter(job, msgspec.json.decode(record.response, type=Asked), ended_at)


def whole_body(
    job: GenerateJob,
    record: JobRecord,
    deltas: Iterable[Delta],
    finished: Finished,
    ended_at: float | None = None,
) -> Struct:
    """Return the answer in one piece, of its deltas in order; `ended_at`: Unix time, if past."""
    if record.response:
        return response_writer_of(job, record, ended_at).whole(deltas, finished)
    choices: dict[int, GatheredChoice] = {}
    for delta in deltas:
        choices.setdefault(delta.choice, GatheredChoice(delta.choice)).add(delta)
    return writer_of(job, record).body([choices[index] for index in sorted(choices)], finished)
