"""GET /v1/models."""

from __future__ import annotations

from litestar import Controller, get
from litestar.params import FromPath

from api.auth import require_key
from api.catalog import find_model
from api.responses import ModelBody, ModelList
from api.services import AppServices
from worker.wire.messages import ModelInfo


class ModelController(Controller):
    path = "/v1/models"
    guards = [require_key]  # noqa: RUF012
    tags = ["models"]  # noqa: RUF012

    @get()
    async def list_models(self, services: AppServices) -> ModelList:
        """List the models that workers offer now; while no worker is up, those it knew last."""
        living = {worker.model.name for worker in await services.gateway.workers()}
        known = await services.gateway.models(is_fresh=True)
        models = [model for model in known if model.name in living] or known
        return ModelList(data=[_body(model) for model in models])

    @get("/{name:path}")
    async def get_model(self, name: FromPath[str], services: AppServices) -> ModelBody:
        """Describe one model."""
        return _body(await find_model(services.gateway, name.removeprefix("/")))


def _body(model: ModelInfo) -> ModelBody:
    return ModelBody(
        id=model.name,
        created=model.created,
        max_model_len=model.max_model_len,
        modes=model.modes,
    )
