"""Bodies of /v1/files and /v1/batches, in OpenAI's shape."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field

from worker.wire.batch_store import Batch, FileRecord, LineError


class ExpiresAfter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    anchor: Literal["created_at"]
    seconds: int


class BatchRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/batches."""

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


class FileBody(Struct, frozen=True, kw_only=True):
    id: str
    object: str = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: str = "processed"


class DeletedFile(Struct, frozen=True, kw_only=True):
    id: str
    object: str = "file"
    deleted: bool = True


class FileList(Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[FileBody]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchErrors(Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[LineError]


class RequestCounts(Struct, frozen=True, kw_only=True):
    total: int
    completed: int
    failed: int


class BatchBody(Struct, frozen=True, kw_only=True):
    id: str
    object: str = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str = "24h"
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    usage: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str]


class BatchList(Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[BatchBody]
    first_id: str | None
    last_id: str | None
    has_more: bool


def file_body(record: FileRecord) -> FileBody:
    return FileBody(
        id=record.file_id,
        bytes=record.num_bytes,
        created_at=record.created_at,
        expires_at=record.expires_at,
        filename=record.filename,
        purpose=record.purpose,
    )


def batch_body(batch: Batch) -> BatchBody:
    spec, state = batch.spec, batch.state
    is_open = state.status in ("validating", "in_progress", "finalizing")
    return BatchBody(
        id=batch.batch_id,
        endpoint=spec.endpoint,
        model=state.model,
        errors=BatchErrors(data=state.errors) if state.errors else None,
        input_file_id=spec.input_file_id,
        status="cancelling" if batch.is_cancelled and is_open else state.status,
        output_file_id=state.output_file_id,
        error_file_id=state.error_file_id,
        created_at=spec.created_at,
        expires_at=spec.expires_at,
        in_progress_at=state.stamps.get("in_progress"),
        finalizing_at=state.stamps.get("finalizing"),
        completed_at=state.stamps.get("completed"),
        failed_at=state.stamps.get("failed"),
        expired_at=state.stamps.get("expired"),
        cancelling_at=state.stamps.get("cancelling"),
        cancelled_at=state.stamps.get("cancelled"),
        request_counts=RequestCounts(
            total=state.total, completed=state.completed, failed=state.failed
        ),
        usage={
            "input_tokens": state.num_input_tokens,
            "input_tokens_details": {"cached_tokens": state.num_cached_tokens},
            "output_tokens": state.num_output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": state.num_input_tokens + state.num_output_tokens,
        },
        metadata=spec.metadata,
    )
