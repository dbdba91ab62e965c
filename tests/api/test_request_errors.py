"""Every kind of bad request: which status, which field."""

from __future__ import annotations

import httpx
import pytest

from tests.api.fakes import FakeGateway, served

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
MESSAGES = [{"role": "user", "content": "x"}]


def _message(**fields: object) -> dict[str, object]:
    return {"messages": [*MESSAGES, {"role": "user", "content": "x", **fields}]}


CHAT_CASES = [
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "x"}, "messages"),
    (_message(content=5), "messages[1].content"),
    (_message(content=None), "messages[1].content"),
    (_message(content=[]), "messages[1].content"),
    (_message(role="robot"), "messages[1].role"),
    (_message(shoe=1), "messages[1].shoe"),
    (_message(tool_calls=[{}]), "messages[1].tool_calls[0].id"),
    (_message(content=[{"type": "text", "text": 4}]), "messages[1].content[0].text"),
    (_message(content=[{"type": "text"}]), "messages[1].content[0].text"),
    (_message(content=[{"type": "image_url", "image_url": {}}]), "messages[1].content[0].type"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 1}, "logprobs"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"suffix": "b"}, "suffix"),
    ({"audio": {}, "modalities": ["audio"]}, "modalities"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"other": 1}}, "stream_options.other"),
]

TEXT_CASES = [
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": [True]}, "prompt[0]"),
    ({"prompt": [1, -1]}, "prompt[1]"),
    ({"prompt": [[1], [2**31]]}, "prompt[1][0]"),
    ({"prompt": [[1], [2, "b"]]}, "prompt[1][1]"),
    ({"prompt": [1] * 129}, "prompt"),
    ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
    ({"suffix": "b"}, "suffix"),
    ({"best_of": 2}, "best_of"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": "9"}, "max_tokens"),
    ({"max_tokens": 2, "min_tokens": 3}, "min_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.01}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.5}, "min_p"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"seed": 2**63}, "seed"),
    ({"seed": -(2**63) - 1}, "seed"),
    ({"seed": 10**400}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": ["a", 5]}, "stop[1]"),
    ({"stop_token_ids": [1, -1]}, "stop_token_ids[1]"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"99999999999": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 0, "7": 101}}, "logit_bias.7"),
    ({"logit_bias": {"1": 0, "7": "x"}}, "logit_bias.7"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"mode": "magic"}, "mode"),
    ({"draft_length": -1}, "draft_length"),
    ({"store": True}, "store"),
    ({"priority": "urgent"}, "priority"),
    ({"service_tier": "gold"}, "service_tier"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"tempreature": 1}, "tempreature"),
    ({"model": 5}, "model"),
]


@pytest.mark.parametrize(("fields", "param"), CHAT_CASES)
def test_a_bad_chat_request_names_its_field(
    http: httpx.Client, gateway: FakeGateway, fields: dict[str, object], param: str
) -> None:
    body = {"model": "tiny", "messages": MESSAGES, **fields}
    _assert_refused(http.post(CHAT, json=body), param)
    assert gateway.jobs == []


@pytest.mark.parametrize(("fields", "param"), TEXT_CASES)
def test_a_bad_completion_request_names_its_field(
    http: httpx.Client, gateway: FakeGateway, fields: dict[str, object], param: str
) -> None:
    body = {"model": "tiny", "prompt": "x", **fields}
    _assert_refused(http.post(TEXT, json=body), param)
    assert gateway.jobs == []


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_missing_field_is_named(http: httpx.Client, gateway: FakeGateway, name: str) -> None:
    body = {"model": "tiny", "messages": MESSAGES}
    del body[name]
    error = _assert_refused(http.post(CHAT, json=body), name)
    assert error["code"] == "missing_required_parameter"


def test_an_unknown_argument_is_not_dropped(http: httpx.Client, gateway: FakeGateway) -> None:
    body = {"model": "tiny", "prompt": "x", "tempreature": 1}
    error = _assert_refused(http.post(TEXT, json=body), "tempreature")
    assert error["message"] == "Unrecognized request argument supplied: tempreature"


def test_null_is_as_good_as_absent_and_habits_are_forgiven(
    http: httpx.Client, gateway: FakeGateway
) -> None:
    body = {
        "model": "tiny", "messages": MESSAGES, "tools": None, "tool_choice": "auto",
        "response_format": {"type": "text"}, "temperature": None, "stop": None, "n": None,
        "logprobs": False, "functions": [], "metadata": {"a": "b"}, "user": "me", "store": False,
        "stream_options": None, "modalities": ["text"], "parallel_tool_calls": True,
    }  # fmt: skip
    assert http.post(CHAT, json=body).status_code == 200
    assert gateway.jobs[0].sampling.temperature == 1.0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b'{"model": "tiny",}', "byte 17"),
        (b'{"model": "tiny", "temperature": NaN}', "byte"),
        (b'{"model": "\xff"}', "utf-8"),
        (b'{"model"', "JSON"),
        (b"[" * 200_000, "object"),
    ],
)
def test_what_is_not_json_says_where(
    http: httpx.Client, gateway: FakeGateway, content: bytes, words: str
) -> None:
    response = http.post(TEXT, content=content, headers={"Content-Type": "application/json"})
    assert words in _assert_refused(response, None)["message"]


def test_a_web_page_cannot_send_a_request_as_plain_text(
    http: httpx.Client, gateway: FakeGateway
) -> None:
    content = b'{"model": "tiny", "prompt": "x"}'
    response = http.post(TEXT, content=content, headers={"Content-Type": "text/plain"})
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nowhere", 404, "not_found"), ("GET", TEXT, 405, "method_not_allowed")],
)
def test_the_routers_own_faults_have_the_same_body(
    http: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert response.headers["x-request-id"]


def test_a_body_that_is_too_large_is_refused() -> None:
    with served(FakeGateway(), max_body_bytes=1000) as url:
        response = httpx.post(url + TEXT, json={"model": "tiny", "prompt": "x" * 2000})
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_bug_shows_neither_its_trace_nor_the_prompt() -> None:
    gateway = FakeGateway(refusal=ZeroDivisionError("secret"))
    with served(gateway) as url:
        response = httpx.post(url + TEXT, json={"model": "tiny", "prompt": "my prompt"})
    assert response.status_code == 500
    assert response.json()["error"] == {
        "message": "The server failed.", "type": "server_error", "param": None,
        "code": "internal_error",
    }  # fmt: skip


def test_without_any_model_the_server_is_unavailable() -> None:
    with served(FakeGateway(known=[])) as url:
        response = httpx.post(url + TEXT, json={"model": "tiny", "prompt": "x"})
    assert response.status_code == 503
    assert response.headers["retry-after"]


def _assert_refused(response: httpx.Response, param: str | None) -> dict[str, str]:
    assert response.status_code == 400, response.text
    error: dict[str, str] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/files?limit=abc", "limit"),
        ("/v1/batches?limit=0", "limit"),
        ("/v1/jobs?limit=1000", "limit"),
        ("/v1/files?order=up", "order"),
        ("/v1/responses/resp_x?stream=maybe", "stream"),
        ("/v1/responses/resp_x?starting_after=x", "starting_after"),
    ],
)
def test_a_wrong_query_parameter_is_named(http: httpx.Client, path: str, param: str) -> None:
    reply = http.get(path)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert param in error["message"]


@pytest.mark.parametrize("head", ["", "\r\nContent-Type: text/plain; charset=nonsense"])
def test_a_form_whose_text_cannot_be_read_is_refused(http: httpx.Client, head: str) -> None:
    field = f'--b\r\nContent-Disposition: form-data; name="purpose"{head}\r\n\r\n'
    content = field.encode() + b"\xff\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert http.post("/v1/files", content=content, headers=headers).status_code == 400
