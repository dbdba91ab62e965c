"""Every spelling of a structured output becomes one grammar of the job, or is refused by name."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.api.fakes import FakeGateway
from worker.wire.messages import Grammar

CHAT = "/v1/chat/completions"
SCHEMA: dict[str, Any] = {
    "type": "object", "properties": {"b": {"type": "integer"}, "a": {}}, "required": ["b"],
}  # fmt: skip
TEXT = '{"type":"object","properties":{"b":{"type":"integer"},"a":{}},"required":["b"]}'
ANY_OBJECT = '{"type":"object"}'


def _schema_format(**fields: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, **fields}}


GIVEN = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": None, "guided_regex": None, "structured_outputs": None}, None),
    (
        {"response_format": {"type": "json_object"}},
        Grammar("json", ANY_OBJECT, "response_format"),
    ),
    ({"response_format": _schema_format()}, Grammar("json", TEXT, "response_format")),
    (
        {"response_format": _schema_format(strict=True, description="d", schema=True)},
        Grammar("json", "true", "response_format"),
    ),
    (
        {"structured_outputs": {"json": SCHEMA}},
        Grammar("json", TEXT, "structured_outputs.json"),
    ),
    (
        {"structured_outputs": {"json": TEXT, "structural_tag": None}},
        Grammar("json", TEXT, "structured_outputs.json"),
    ),
    (
        {"structured_outputs": {"regex": "a+", "disable_any_whitespace": False}},
        Grammar("regex", "a+", "structured_outputs.regex"),
    ),
    (
        {"structured_outputs": {"choice": ["a", "\u00e9"]}},
        Grammar("choice", '["a","\u00e9"]', "structured_outputs.choice"),
    ),
    (
        {"structured_outputs": {"grammar": "start: A"}},
        Grammar("grammar", "start: A", "structured_outputs.grammar"),
    ),
    (
        {"structured_outputs": {"json_object": True}},
        Grammar("json", ANY_OBJECT, "structured_outputs.json_object"),
    ),
    ({"guided_json": SCHEMA}, Grammar("json", TEXT, "guided_json")),
    ({"guided_json": TEXT}, Grammar("json", TEXT, "guided_json")),
    ({"guided_json": {}}, Grammar("json", "{}", "guided_json")),
    ({"guided_regex": "a"}, Grammar("regex", "a", "guided_regex")),
    ({"guided_choice": ["x"]}, Grammar("choice", '["x"]', "guided_choice")),
    ({"guided_grammar": "g"}, Grammar("grammar", "g", "guided_grammar")),
    (
        {"guided_regex": "a", "response_format": {"type": "text"}},
        Grammar("regex", "a", "guided_regex"),
    ),
]

REFUSED = [
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
    ({"response_format": {"type": "grammar", "grammar": "x"}}, "response_format.grammar"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
    ),
    ({"response_format": _schema_format(schema=[1])}, "response_format.json_schema.schema"),
    ({"response_format": _schema_format(shape=1)}, "response_format.json_schema.shape"),
    (
        {"response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
        "response_format.json_schema",
    ),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
    ({"structured_outputs": {"shape": 1}}, "structured_outputs.shape"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
    (
        {"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
        "structured_outputs.whitespace_pattern",
    ),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs.choice[1]"),
    ({"guided_regex": ""}, "guided_regex"),
    ({"guided_regex": "a" * 131_073}, "guided_regex"),
    ({"guided_grammar": ""}, "guided_grammar"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_json": ""}, "guided_json"),
    ({"guided_json": {"enum": ["x" * 131_072]}}, "guided_json"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": ["a", ""]}, "guided_choice"),
    ({"guided_choice": ["a"] * 4097}, "guided_choice"),
    ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_choice"),
    ({"guided_choice": ["a"], "response_format": {"type": "json_object"}}, "guided_choice"),
    ({"guided_regex": "a", "guided_decoding_backend": "xgrammar"}, "guided_decoding_backend"),
    ({"guided_json": {}, "guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
]


def _body(fields: dict[str, Any]) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "x"}], **fields}


@pytest.mark.parametrize(("fields", "grammar"), GIVEN)
def test_a_structured_output_becomes_a_grammar_of_the_job(
    http: httpx.Client, gateway: FakeGateway, fields: dict[str, Any], grammar: Grammar | None
) -> None:
    assert http.post(CHAT, json=_body(fields)).status_code == 200
    assert gateway.jobs[0].sampling.grammar == grammar
    completion = {"model": "tiny", "prompt": "x", **fields}
    assert http.post("/v1/completions", json=completion).status_code == 200
    assert gateway.jobs[1].sampling.grammar == grammar


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=range(len(REFUSED)))
def test_a_structured_output_that_cannot_be_meant_names_its_field(
    http: httpx.Client, gateway: FakeGateway, fields: dict[str, Any], param: str
) -> None:
    response = http.post(CHAT, json=_body(fields))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param, response.text
    assert gateway.jobs == []


@pytest.mark.parametrize("text", ['{"a":' * 900 + "1" + "}" * 900, "[" * 5000])
def test_a_schema_however_deep_brings_nothing_down(
    http: httpx.Client, gateway: FakeGateway, text: str
) -> None:
    assert http.post(CHAT, json=_body({"guided_json": text})).status_code in (200, 400)
    content = json.dumps(_body({"guided_json": {}})).replace(
        '"guided_json": {}', f'"guided_json": {text}'
    )
    headers = {"Content-Type": "application/json"}
    assert http.post(CHAT, content=content, headers=headers).status_code in (200, 400)


def test_the_order_of_a_schemas_properties_is_kept(
    http: httpx.Client, gateway: FakeGateway
) -> None:
    """The output's fields come in this order, and a model may reason in the first for the next."""
    http.post(CHAT, json=_body({"guided_json": SCHEMA}))
    grammar = gateway.jobs[0].sampling.grammar
    assert grammar is not None
    assert list(json.loads(grammar.definition)["properties"]) == ["b", "a"]


def test_the_openai_client_sends_what_is_understood(
    client: openai.OpenAI, gateway: FakeGateway
) -> None:
    messages: Any = [{"role": "user", "content": "x"}]
    response_format: Any = _schema_format(strict=True)
    client.chat.completions.create(model="tiny", messages=messages, response_format=response_format)
    client.chat.completions.create(
        model="tiny", messages=messages, extra_body={"structured_outputs": {"regex": "a"}}
    )
    kinds = [job.sampling.grammar.kind for job in gateway.jobs if job.sampling.grammar]
    assert kinds == ["json", "regex"]
