"""The search for a model by name."""

from __future__ import annotations

from api.errors import ModelNotFoundError, UnavailableError
from api.gateway import GenerationGateway
from worker.wire.messages import ModelInfo

NO_WORKER_RETRY_S = 15.0


async def find_served_model(gateway: GenerationGateway, name: str) -> ModelInfo:
    """Return a model as `find_model`; raises UnavailableError where nobody will run it soon."""
    model = await find_model(gateway, name)
    if await gateway.is_served(name) or await gateway.is_served(name, is_fresh=True):
        return model
    raise UnavailableError(
        f"No worker offers the model '{name}' now.", retry_after_s=NO_WORKER_RETRY_S
    )


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
