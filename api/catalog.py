"""The search for a model by name."""

from __future__ import annotations

from api.errors import ModelNotFoundError, UnavailableError
from api.gateway import GenerationGateway
from worker.wire.messages import ModelInfo


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
