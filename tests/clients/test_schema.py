"""What the OpenAPI document says and what the server answers are the same, for any request."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import APIOperation, GenerationMode, checks

from api.app import create_app
from api.openapi_document import complete
from api.openapi_examples import BODIES
from api.settings import ApiSettings
from tests.api.fakes import FakeGateway
from tests.clients.conftest import ROUNDS, WholeServer
from tests.worker_bench import MODEL

NUM_EXAMPLES = 12 * ROUNDS
BOGUS = "no-such-thing"

checks.load_all_checks()
# A schema cannot say all that makes a request right, and what it cannot say is refused with a 400.
_CANNOT_SAY = checks.CHECKS.get_one("positive_data_acceptance")
_MUST_REFUSE = checks.CHECKS.get_one("negative_data_rejection")


def _document() -> dict[str, Any]:
    app = create_app(ApiSettings(), FakeGateway())
    return complete(app.openapi_schema.to_schema())


OPERATIONS = {
    found.ok().label: found.ok()
    for found in schemathesis.openapi.from_dict(_document()).get_all_operations()
}


@pytest.fixture(scope="module")
def things(whole_server: WholeServer) -> Iterator[dict[str, str]]:
    """One of each thing that a path may name, there already."""
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 8}
    asked = {"model": MODEL, "input": "x", "background": True, "max_output_tokens": 8}
    job = {"url": "/v1/chat/completions", "body": chat}
    with whole_server.client() as client:
        upload = {"file": ("in.jsonl", b"{}")}
        file = client.post("/v1/files", files=upload, data={"purpose": "batch"}).json()
        batch = {
            "input_file_id": file["id"],
            "endpoint": "/v1/completions",
            "completion_window": "24h",
        }
        yield {
            "job_id": client.post("/v1/jobs", json=job).json()["id"],
            "response_id": client.post("/v1/responses", json=asked).json()["id"],
            "file_id": file["id"],
            "batch_id": client.post("/v1/batches", json=batch).json()["id"],
            "name": MODEL,
        }


@pytest.mark.parametrize("label", OPERATIONS)
def test_no_request_is_answered_with_a_fault_or_outside_the_document(
    whole_server: WholeServer, things: dict[str, str], label: str
) -> None:
    operation = OPERATIONS[label]
    # Of an address only what is known is looked at; and a form's values are all text.
    is_json = any(body.media_type == "application/json" for body in operation.body)
    excluded = [_CANNOT_SAY] if is_json else [_CANNOT_SAY, _MUST_REFUSE]

    @settings(
        max_examples=NUM_EXAMPLES, derandomize=ROUNDS == 1, database=None, deadline=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=_right_and_wrong(operation))
    def each_request_is_answered_as_described(case: schemathesis.Case) -> None:
        _make_it_meet_something(case, things)
        case.call_and_validate(
            base_url=whole_server.url,
            headers=whole_server.headers,
            excluded_checks=excluded,
            timeout=30,
        )

    each_request_is_answered_as_described()


def _right_and_wrong(operation: APIOperation) -> st.SearchStrategy[schemathesis.Case]:
    """Requests that the document allows, and where there is something to get wrong, others."""
    right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if operation.body or operation.query or operation.headers:
        wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
        return st.one_of(right, wrong)
    return right


def _make_it_meet_something(case: schemathesis.Case, things: dict[str, str]) -> None:
    """Have some requests be about what is there; else nearly all would end with a 404 or 400."""
    dice = random.Random(repr((case.body, case.query)))
    for name in case.path_parameters:
        case.path_parameters[name] = things[name] if dice.random() < 0.7 else BOGUS
    if not isinstance(case.body, dict):
        return
    is_right = case.meta is not None and case.meta.generation.mode.is_positive
    if is_right and dice.random() < 0.7:
        case.headers.pop("Idempotency-Key", None)
        case.body = _nearly_good(case.body, BODIES.get(("post", case.path)), dice)
    # The one asks for a 504, the other has the server call addresses that are made up.
    case.body.pop("max_queue_time", None)
    case.body.pop("webhook", None)


def _nearly_good(drawn: dict[str, Any], good: Any, dice: random.Random) -> dict[str, Any]:
    """Return the example of a body with a few drawn fields in it."""
    if good is None:
        return drawn
    few = dice.sample(sorted(drawn), min(len(drawn), dice.randrange(3)))
    body = {**good, **{name: drawn[name] for name in few}}
    if "url" in body:
        body["body"] = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
    return {name: MODEL if name == "model" else value for name, value in body.items()}
