"""The OpenAPI document: it has all endpoints, with examples that are what they are examples of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import msgspec
import pytest

from tests.api.fakes import FakeGateway

Operation = tuple[str, str, dict[str, Any]]


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = http.get("/schema/openapi.json").json()
    return found


def _operations(document: dict[str, Any]) -> Iterator[Operation]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield method, path, operation


def test_every_answer_and_body_has_an_example_that_is_one(document: dict[str, Any]) -> None:
    num_seen = 0
    for method, path, operation in _operations(document):
        for status, response in operation["responses"].items():
            if path.endswith("/content"):
                continue  # bytes
            for media, content in response["content"].items():
                where = f"{method} {path} {status} {media}"
                assert "example" in content, where
                if media == "application/json":
                    _check(document, content, where)
                    num_seen += 1
        for media, content in operation.get("requestBody", {}).get("content", {}).items():
            if media == "application/json":
                _check(document, content, f"the body of {method} {path}")
    assert num_seen > 100


def _check(document: dict[str, Any], content: dict[str, Any], where: str) -> None:
    schema = content["schema"] | {"components": document["components"]}
    try:
        jsonschema.validate(content["example"], schema)
    except jsonschema.ValidationError as error:
        raise AssertionError(f"the example of {where}: {error.message}") from None


def test_the_examples_of_bodies_are_taken(
    http: httpx.Client, gateway: FakeGateway, document: dict[str, Any]
) -> None:
    model = msgspec.structs.replace(gateway.known[0], modes=["ar", "deer", "diffusion"])
    gateway.known = [model]
    for path in ("/v1/completions", "/v1/fim/completions", "/v1/chat/completions", "/tokenize"):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        reply = http.post(path, json=body["example"])
        assert reply.status_code == 200, reply.text


def test_streams_are_described_beside_whole_answers(document: dict[str, Any]) -> None:
    content = document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/event-stream"}


def test_what_needs_a_key_says_so(document: dict[str, Any]) -> None:
    needs_none = {
        path for _, path, operation in _operations(document) if "security" not in operation
    }
    assert needs_none == {"/health", "/ready", "/load", "/version", "/metrics"}


def test_the_page_shows_every_operation_and_asks_nobody_else(
    http: httpx.Client, document: dict[str, Any]
) -> None:
    reply = http.get("/schema")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    for method, path, _ in _operations(document):
        assert f"{method.upper()} {path}" in reply.text
    assert re.findall(r"""(?:src|href)=["']([^"']*)""", reply.text) == ["/schema/openapi.json"]
    assert "<script" not in reply.text
