"""GET /v1/models, and the search for a model by name."""

from __future__ import annotations

from litestar import Controller, get
from litestar.params import FromPath

from api.auth import require_key
from api.errors import ModelNotFoundError, UnavailableError
from api.gateway import GenerationGateway
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
        workers = await services.gateway.workers()
        offered = {worker.model.name: worker.model for worker in workers}
        models = list(offered.values()) or await services.gateway.models()
        return ModelList(data=[_body(model) for model in models])

    @get("/{name:path}")
    async def get_model(self, name: FromPath[str], services: AppServices) -> ModelBody:
        """Describe one model."""
        return _body(await find_model(services.gateway, name.removeprefix("/")))


async def find_model(gateway: GenerationGateway, name: str) -> ModelInfo:
    """Return the model of exactly this name; raises ModelNotFoundError, naming those there are."""
    for is_fresh in (False, True):
        models = await gateway.models(is_fresh=is_fresh)
        for model in models:
            if model.name == name:
                return model
    if not models:
        raise UnavailableError("No worker has offered a model yet; is one running?")
    known = ", ".join(sorted(f"'{model.name}'" for model in models))
    raise ModelNotFoundError(
        f"The model '{name[:100]}' does not exist here. There is: {known}.", param="model"
    )


def _body(model: ModelInfo) -> ModelBody:
    return ModelBody(
        id=model.name,
        created=model.created,
        max_model_len=model.max_model_len,
        modes=model.modes,
    )
