"""Which writer writes a job's answer, and the answer in one piece."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from api.response_api.objects import Asked
from api.response_api.writer import ResponseWriter
from api.tool_writer import ToolChatWriter
from api.writers import ChatWriter, GatheredChoice, TextWriter, Writer
from worker.wire.messages import Chat, Delta, Finished, GenerateJob, JobRecord


def writer_of(job: GenerateJob, record: JobRecord) -> Writer:
    """Return the writer of the endpoint that a job was meant for."""
    match job.input:
        case Chat(tools=None):
            return ChatWriter(job, record)
        case Chat():
            return ToolChatWriter(job, record)
        case _:
            return TextWriter(job, record)


def whole_body(
    job: GenerateJob, record: JobRecord, deltas: Iterable[Delta], finished: Finished
) -> Struct:
    """Return the answer in one piece, of all its deltas in order."""
    if record.response:
        asked = msgspec.json.decode(record.response, type=Asked)
        return ResponseWriter(job, asked).whole(deltas, finished)
    choices: dict[int, GatheredChoice] = {}
    for delta in deltas:
        choices.setdefault(delta.choice, GatheredChoice(delta.choice)).add(delta)
    return writer_of(job, record).body([choices[index] for index in sorted(choices)], finished)
