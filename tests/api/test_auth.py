"""Keys, tenants, and what web pages of other origins may do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from api.errors import AuthenticationError
from api.key_ring import ANONYMOUS, KeyRing, Limits, ring_of
from api.rate_limit import num_tokens_charged
from api.settings import ApiSettings, SettingsError
from tests.api.fakes import FakeGateway, served
from tests.worker_bench import make_job
from worker.wire.messages import Prompts

ENTRY = f'[[keys]]\nsha256 = "{"a" * 64}"\n'
CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(scope="module")
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture(scope="module")
def locked(gateway: FakeGateway) -> Iterator[str]:
    with served(gateway, api_key=("first", "schlüssel")) as url:
        yield url


def _ring(*keys: str) -> KeyRing:
    return ring_of(keys, "", Limits())


@pytest.mark.parametrize("header", ["", "first", "Bearer ", "Bearer wrong", "Basic first"])
def test_only_a_known_key_opens(header: str) -> None:
    with pytest.raises(AuthenticationError):
        _ring("first").tenant_of(header)


def test_each_key_is_a_tenant_and_the_tenant_does_not_show_the_key() -> None:
    ring = _ring("first", "second")
    first, second = ring.tenant_of("Bearer first").name, ring.tenant_of("bearer  second").name
    assert first != second
    assert "first" not in first
    assert _ring().tenant_of("Bearer anything").name == ANONYMOUS


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
    assert gateway.jobs[0].tenant == _ring("first").tenant_of("Bearer first").name


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny"])
def test_the_catalogue_is_behind_the_key(locked: str, path: str) -> None:
    assert httpx.get(locked + path).status_code == 401


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_probes_need_no_key(locked: str, path: str) -> None:
    assert httpx.get(locked + path).status_code == 200


def test_pages_of_other_origins_are_let_in_only_where_they_are_named() -> None:
    with served(FakeGateway()) as url:
        for origin in ("https://example.org", "http://localhost:3000"):
            assert "access-control-allow-origin" not in _preflight(url, origin).headers
    with served(FakeGateway(), cors_origins=("https://example.org",)) as url:
        allowed = _preflight(url, "https://example.org").headers
        assert allowed["access-control-allow-origin"] == "https://example.org"
        assert "access-control-allow-origin" not in _preflight(url, "https://other.org").headers


def test_keys_of_the_file_are_hashed_and_may_have_limits_of_their_own(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "api.new_key", "--name", 'A "team"', "--requests", "7"],
        capture_output=True,
        text=True,
        check=True,
    )
    key = made.stderr.splitlines()[0].rpartition(" ")[2]
    assert key not in made.stdout
    file = tmp_path / "keys.toml"
    file.write_text(made.stdout)
    ring = ring_of(("other",), str(file), Limits(requests=1, tokens=2))
    assert ring.tenant_of(f"Bearer {key}").limits == Limits(requests=7, tokens=2)
    assert ring.tenant_of("Bearer other").limits == Limits(requests=1, tokens=2)
    # The tenant hangs on the key alone, wherever it is listed.
    assert ring.tenant_of(f"Bearer {key}").name == _ring(key).tenant_of(f"Bearer {key}").name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "keys = []",
        "[[keys]]",
        '[[keys]]\nsha256 = "ab"',
        "not toml",
        f"{ENTRY}requests = -1",
        f"{ENTRY}shoe = 1",
    ],
)
def test_a_keys_file_that_cannot_be_meant_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match="VDIFF_KEYS_FILE"):
        ApiSettings(keys_file=str(file))
    with pytest.raises(SettingsError, match="VDIFF_KEYS_FILE"):
        ApiSettings(keys_file=str(tmp_path / "none"))


def _preflight(url: str, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    return httpx.options(url + CHAT, headers=headers)


def test_each_prompt_and_each_choice_counts_against_the_tokens_of_a_key() -> None:
    job = make_job("j", input=Prompts(["a", "b", "c"]), n=2, max_tokens=10)
    assert num_tokens_charged(job) == 3 * 2 * 10
    assert num_tokens_charged(make_job("j", input=Prompts(["x" * 400]), max_tokens=10)) == 100
