"""/v1/batches: create, look, list, cancel."""

from __future__ import annotations

from typing import Annotated

from litestar import Controller, get, post
from litestar.params import FromPath, FromQuery, QueryParameter, RawBody

from api.answering import AnyRequest
from api.auth import admit, require_key
from api.batches.batch_desk import BatchDesk
from api.batches.objects import BatchBody, BatchList, BatchRequest
from api.decoding import decode_request
from api.errors import UnavailableError
from api.idempotency import HEADER, checked_key, digest_of
from api.openapi import body_of
from api.services import AppServices, Services


class BatchController(Controller):
    path = "/v1/batches"
    tags = ["batches"]  # noqa: RUF012

    @post(status_code=200, guards=[admit], operation_class=body_of(BatchRequest))
    async def create_batch(
        self, request: AnyRequest, body: RawBody, services: AppServices
    ) -> BatchBody:
        """Have every line of a file answered within a day, behind all that is more urgent."""
        wanted = decode_request(body, request.headers.get("content-type", ""), BatchRequest)
        given = request.headers.get(HEADER)
        key = None if given is None else checked_key(given)
        digest = digest_of(self.path, body)
        return await _desk(services).create(wanted, request.state.tenant, key, digest)

    @get(guards=[require_key])
    async def list_batches(
        self,
        request: AnyRequest,
        services: AppServices,
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        after: FromQuery[str | None] = None,
    ) -> BatchList:
        """List batches, the newest first."""
        return await _desk(services).list(request.state.tenant, limit, after)

    @get("/{batch_id:str}", guards=[require_key])
    async def get_batch(
        self, request: AnyRequest, batch_id: FromPath[str], services: AppServices
    ) -> BatchBody:
        """Say how far a batch is."""
        return await _desk(services).look(batch_id, request.state.tenant)

    @post("/{batch_id:str}/cancel", status_code=200, guards=[require_key])
    async def cancel_batch(
        self, request: AnyRequest, batch_id: FromPath[str], services: AppServices
    ) -> BatchBody:
        """End a batch; what is answered by then is kept."""
        return await _desk(services).cancel(batch_id, request.state.tenant)


def _desk(services: Services) -> BatchDesk:
    if services.batches is None:
        raise UnavailableError("This server keeps no batches.")
    return services.batches
