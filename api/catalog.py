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

NO_WORKER_RETRY_S = 15.0


class ModelController(Controller):
    path = "/v1/models"
    guards = [require_key]  # noqa: RUF012
    tags = ["models"]  # noqa: RUF012

    @get()
    async def list_models(self, services: AppServices) -> ModelList:
        """List the models that workers offer now; while no worker is up, those it knew last."""
        living = {worker.model.name for worker in await services.gateway.workers()}
        known = await services.gateway.models(is_fresh=True)
        offered = [model for model in known if model.name in living]
        return ModelList(data=[_body(model) for model in offered or known])

    @get("/{name:path}")
    async def get_model(self, name: FromPath[str], services: AppServices) -> ModelBody:
        """Describe one model."""
        return _body(await find_model(services.gateway, name.removeprefix("/")))


async def find_served_model(gateway: GenerationGateway, name: str) -> ModelInfo:
    """Return a model as `find_model`; raises UnavailableError where nobody will run it soon."""
    model = await find_model(gateway, name)
    if await gateway.is_served(name) or await gateway.is_served(name, is_fresh=True):
        return model
    raise UnavailableError(
        f"No worker offers the model '{name}' now.", retry_after_s=NO_WORKER_RETRY_S
    )


async def find_model(gateway: GenerationGateway, name: str, *, is_fresh: bool = False) -> ModelInfo:
    """Return the model of exactly this name; raises ModelNotFoundError, naming those there are."""
    for must_ask in (is_fresh, True):
        models = await gateway.models(is_fresh=must_ask)
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
