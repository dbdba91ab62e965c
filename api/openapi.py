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


def body_of(model: type[msgspec.Struct], example: Any = None) -> type[Operation]:
    """Return an operation class whose request body is `model`."""
    (schema,), parts = msgspec.json.schema_components([model], ref_template="{name}")
    # A plain dict where litestar's types want a Schema: it is written out as it stands.
    whole: Any = _inlined(schema, parts)
    body = RequestBody(
        required=True, content={"application/json": OpenAPIMediaType(schema=whole, example=example)}
    )

    @dataclass
    class OperationWithBody(Operation):
        def __post_init__(self) -> None:
            self.request_body = body

    return OperationWithBody


def openapi_config() -> OpenAPIConfig:
    key = SecurityScheme(type="http", scheme="bearer")
    components = Components(security_schemes={"key": key})
    return OpenAPIConfig(title="dfastllm", version="0.1.0", components=components)


def _inlined(schema: Any, parts: dict[str, Any]) -> Any:
    """Put each part in place of the reference to it: litestar drops components it did not make."""
    if isinstance(schema, list):
        return [_inlined(item, parts) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(parts[schema["$ref"]], parts)
    return {name: _inlined(value, parts) for name, value in schema.items()}
