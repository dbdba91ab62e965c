"""Request bodies for the OpenAPI page, which litestar does not see: the handlers decode bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import (
    Components,
    OpenAPIMediaType,
    Operation,
    RequestBody,
    SecurityScheme,
)

from api.schemas import ChatCompletionRequest, CompletionRequest

_REF = "#/components/schemas/{name}"
_BODIES = (CompletionRequest, ChatCompletionRequest)


def body_of(model: type[msgspec.Struct]) -> type[Operation]:
    """Return an operation class whose request body is `model`."""
    # A plain dict where litestar's types want a Schema: it is written out as it stands.
    schema: Any = {"$ref": _REF.format(name=model.__name__)}
    body = RequestBody(required=True, content={"application/json": OpenAPIMediaType(schema=schema)})

    @dataclass
    class OperationWithBody(Operation):
        def __post_init__(self) -> None:
            self.request_body = body

    return OperationWithBody


def openapi_config() -> OpenAPIConfig:
    _, schemas = msgspec.json.schema_components(_BODIES, ref_template=_REF)
    components: Any = Components(
        schemas=schemas,
        security_schemes={"key": SecurityScheme(type="http", scheme="bearer")},
    )
    return OpenAPIConfig(title="dfastllm", version="0.1.0", components=components)
