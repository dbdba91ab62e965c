"""Request bodies for the OpenAPI document, which litestar does not see: handlers decode bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import Request
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
from litestar.openapi.spec import (
    Components,
    OpenAPIMediaType,
    Operation,
    RequestBody,
    SecurityScheme,
)

from api.openapi_document import complete
from api.openapi_page import page

AnyRequest = Request[Any, Any, Any]


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


class _WholeDocument(JsonRenderPlugin):
    """Serves the document as JSON."""

    def render(self, request: AnyRequest, openapi_schema: dict[str, Any]) -> bytes:
        return self.render_json(request, complete(openapi_schema))


class _Page(OpenAPIRenderPlugin):
    """Serves the document to be read."""

    def render(self, request: AnyRequest, openapi_schema: dict[str, Any]) -> bytes:
        return page(complete(openapi_schema)).encode()


def openapi_config() -> OpenAPIConfig:
    key = SecurityScheme(type="http", scheme="bearer")
    components = Components(security_schemes={"key": key})
    return OpenAPIConfig(
        title="dfastllm",
        version="0.1.0",
        components=components,
        render_plugins=[_Page(path="/"), _WholeDocument()],
    )


def _inlined(schema: Any, parts: dict[str, Any]) -> Any:
    """Put each part in place of the reference to it: litestar drops components it did not make."""
    if isinstance(schema, list):
        return [_inlined(item, parts) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(parts[schema["$ref"]], parts)
    return {name: _inlined(value, parts) for name, value in schema.items()}
