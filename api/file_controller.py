"""/v1/files: upload, look, read, delete."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import IO, Annotated, Any, Literal

from litestar import Controller, Response, delete, get, post
from litestar.datastructures import UploadFile
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Stream

from api.answering import AnyRequest
from api.auth import admit, require_key
from api.batches.batch_desk import checked_ttl
from api.batches.file_desk import CHUNK, DEFAULT_TTL_S, FileDesk
from api.batches.objects import DeletedFile, FileBody, FileList, file_body
from api.errors import InvalidRequestError, UnavailableError, UnsupportedMediaError
from api.services import AppServices, Services

MAX_FILE_BYTES = 200 * 1024 * 1024  # OpenAI's, for a batch
PURPOSES = ("batch",)

_FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\U0010ffff]")


class FileController(Controller):
    path = "/v1/files"
    tags = ["files"]  # noqa: RUF012

    @post(
        status_code=200,
        guards=[admit],
        request_max_body_size=MAX_FILE_BYTES + 65536,
        responses={200: ResponseSpec(FileBody, generate_examples=False)},
    )
    async def upload_file(self, request: AnyRequest, services: AppServices) -> Response[Any]:
        """Keep a file of JSON lines for a batch."""
        if request.content_type[0] != "multipart/form-data":
            raise UnsupportedMediaError("Content-Type must be multipart/form-data.")
        try:
            form = await request.form()
        except (UnicodeDecodeError, LookupError):
            raise InvalidRequestError("A field of the form is no text in its charset.") from None
        _check_fields(form)
        upload, purpose = form.get("file"), form.get("purpose")
        if not isinstance(upload, UploadFile):
            raise InvalidRequestError("Missing required parameter: 'file'.", param="file")
        if purpose not in PURPOSES:
            raise InvalidRequestError(
                f"'purpose' must be one of {', '.join(PURPOSES)}.", param="purpose"
            )
        record = await files_of(services).keep(
            _read(upload.file),
            request.state.tenant,
            _UNPRINTABLE.sub("", upload.filename or "file")[:255],
            str(purpose),
            _ttl_of(form.get("expires_after[anchor]"), form.get("expires_after[seconds]")),
        )
        return Response(file_body(record))

    @get(guards=[require_key], responses={200: ResponseSpec(FileList, generate_examples=False)})
    async def list_files(
        self,
        request: AnyRequest,
        services: AppServices,
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 100,
        after: FromQuery[str | None] = None,
        purpose: FromQuery[str | None] = None,
        order: FromQuery[Literal["asc", "desc"]] = "desc",
    ) -> FileList:
        """List files, the newest first unless `order` is "asc"."""
        desk, tenant = files_of(services), request.state.tenant
        return await desk.list(tenant, limit, after, purpose, is_newest_first=order == "desc")

    @get("/{file_id:str}", guards=[require_key])
    async def get_file(
        self, request: AnyRequest, file_id: FromPath[str], services: AppServices
    ) -> FileBody:
        """Describe a file."""
        return file_body(await files_of(services).find(file_id, request.state.tenant))

    @get("/{file_id:str}/content", guards=[require_key])
    async def read_file(
        self, request: AnyRequest, file_id: FromPath[str], services: AppServices
    ) -> Stream:
        """Return a file's bytes."""
        content = await files_of(services).open(file_id, request.state.tenant)
        return Stream(content, media_type="application/octet-stream")

    @delete("/{file_id:str}", status_code=200, guards=[require_key])
    async def delete_file(
        self, request: AnyRequest, file_id: FromPath[str], services: AppServices
    ) -> DeletedFile:
        """Forget a file."""
        await files_of(services).delete(file_id, request.state.tenant)
        return DeletedFile(id=file_id)


def files_of(services: Services) -> FileDesk:
    if services.batches is None:
        raise UnavailableError("This server keeps no files.")
    return services.batches.files


def _read(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def _check_fields(form: Mapping[str, Any]) -> None:
    for name in form:
        if name not in _FIELDS:
            raise InvalidRequestError(
                f"Unrecognized request argument supplied: {name[:100]}",
                param=name[:100],
                code="unknown_parameter",
            )


def _ttl_of(anchor: Any, seconds: Any) -> int:
    if anchor is None and seconds is None:
        return DEFAULT_TTL_S
    if anchor != "created_at":
        raise InvalidRequestError(
            "'expires_after.anchor' must be 'created_at'.", param="expires_after.anchor"
        )
    if not str(seconds).isdecimal() or len(str(seconds)) > 9:
        raise InvalidRequestError(
            "'expires_after.seconds' must be a number of seconds.", param="expires_after.seconds"
        )
    return checked_ttl(int(seconds))
