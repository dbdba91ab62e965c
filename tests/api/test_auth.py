"""Keys, tenants, and what web pages of other origins may do."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from api.auth import ANONYMOUS, tenant_of
from api.errors import AuthenticationError
from tests.api.fakes import FakeGateway, served

CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(scope="module")
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture(scope="module")
def locked(gateway: FakeGateway) -> Iterator[str]:
    with served(gateway, api_key=("first", "schlüssel")) as url:
        yield url


@pytest.mark.parametrize("header", ["", "first", "Bearer ", "Bearer wrong", "Basic first"])
def test_only_a_known_key_opens(header: str) -> None:
    with pytest.raises(AuthenticationError):
        tenant_of(header, ("first",))


def test_each_key_is_a_tenant_and_the_tenant_does_not_show_the_key() -> None:
    keys = ("first", "second")
    first, second = tenant_of("Bearer first", keys), tenant_of("bearer  second", keys)
    assert first != second
    assert "first" not in first
    assert tenant_of("Bearer anything", ()) == ANONYMOUS


def test_a_wrong_key_is_an_authentication_error(locked: str) -> None:
    with (
        openai.OpenAI(base_url=f"{locked}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.chat.completions.create(**BODY)  # type: ignore[call-overload]
    assert caught.value.code == "invalid_api_key"
    assert "wrong" not in caught.value.message


def test_a_key_opens_and_its_hash_travels_with_the_job(locked: str, gateway: FakeGateway) -> None:
    headers = {"Authorization": "Bearer first"}
    assert httpx.post(locked + CHAT, json=BODY, headers=headers).status_code == 200
    assert gateway.jobs[0].tenant == tenant_of("Bearer first", ("first",))


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny"])
def test_the_catalogue_is_behind_the_key(locked: str, path: str) -> None:
    assert httpx.get(locked + path).status_code == 401


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_probes_need_no_key(locked: str, path: str) -> None:
    assert httpx.get(locked + path).status_code == 200


def test_without_a_key_a_page_of_another_origin_is_not_let_in() -> None:
    with served(FakeGateway()) as url:
        strange = _preflight(url, "https://example.org")
        local = _preflight(url, "http://localhost:3000")
    assert "access-control-allow-origin" not in strange.headers
    assert local.headers["access-control-allow-origin"] == "http://localhost:3000"


def test_with_a_key_any_page_may_ask(locked: str) -> None:
    response = _preflight(locked, "https://example.org")
    assert response.headers["access-control-allow-origin"] in ("*", "https://example.org")


def _preflight(url: str, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    return httpx.options(url + CHAT, headers=headers)
