"""TLS, client certificates, passwords and ACL users: they work, and what is wrong is said."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from api.app import create_app
from api.redis_connection import check_redis
from api.settings import ApiSettings
from api.settings import SettingsError as ApiSettingsError
from tests.api.fakes import serving
from tests.tls_relay import Certificates, make_certificates, tls_relay
from tests.valkey import Valkey, running_valkey
from tests.worker_bench import running_worker, wait_for_model
from worker.redis_connection import connect, wait_for_redis
from worker.settings import SettingsError
from worker.wire.redis_url import read_redis_url

PASSWORD = "s3/cr:e@t#%"


@dataclass(frozen=True)
class Secured:
    """A server that takes only TLS, only known clients and only who knows a password."""

    server: Valkey
    port: int
    certificates: Certificates

    def url(
        self,
        *,
        scheme: str = "rediss",
        host: str = "localhost",
        user: str = "somebody",
        password: str = PASSWORD,
        ca: Path | None = None,
        has_certificate: bool = True,
    ) -> str:
        files = self.certificates
        query = f"?ssl_ca_certs={ca or files.ca}"
        if has_certificate:
            query += f"&ssl_certfile={files.client}&ssl_keyfile={files.client}"
        return f"{scheme}://{user}:{quote(password, safe='')}@{host}:{self.port}/0{query}"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    certificates = make_certificates(tmp_path_factory.mktemp("tls"))
    with (
        running_valkey() as server,
        tls_relay(certificates.server_context, server.folder / "s") as port,
        server.connect() as client,
    ):
        for user, rules in {"somebody": "~* &* +@all", "nobody": "+@connection +info"}.items():
            client.execute_command("ACL", "SETUSER", user, "on", f">{PASSWORD}", *rules.split())
        yield Secured(server, port, certificates)


def test_everything_works_through_tls_with_a_user_and_a_client_certificate(
    secured: Secured, capfd: pytest.CaptureFixture[str]
) -> None:
    url = secured.url()
    with (
        secured.server.connect() as admin,
        running_worker(secured.server, "w1", redis_url=url),  # type: ignore[arg-type]
        serving(create_app(ApiSettings(redis_url=url))) as api,
    ):
        wait_for_model(admin)
        body = {"model": "fake", "prompt": "x", "max_tokens": 5, "stream": True}
        answer = httpx.post(f"{api}/v1/completions", json=body, timeout=20)
        assert answer.text.endswith("data: [DONE]\n\n"), answer.text
        metrics = httpx.get(f"{api}/metrics", timeout=20).text
        users = {client["user"] for client in admin.client_list()}
    assert users == {"somebody", "default"}
    said = capfd.readouterr()
    for text in (metrics, said.out, said.err):
        assert PASSWORD not in text
        assert quote(PASSWORD, safe="") not in text


FAULTS = {
    "another authority": ({"ca": "other"}, "CERTIFICATE_VERIFY_FAILED"),
    "another host name": ({"host": "127.0.0.1"}, "CERTIFICATE_VERIFY_FAILED"),
    "another password": ({"password": "wr0ng!"}, "does not take user and password"),
    "another user": ({"user": "stranger"}, "does not take user and password"),
}


@pytest.mark.parametrize(("changes", "words"), FAULTS.values(), ids=FAULTS)
def test_who_is_not_let_in_ends_at_once_and_says_why(
    secured: Secured, changes: dict[str, object], words: str
) -> None:
    if changes.get("ca"):
        changes = {"ca": secured.certificates.other_ca}
    url = secured.url(**changes)  # type: ignore[arg-type]
    with connect(url) as client, pytest.raises(SettingsError) as of_worker:
        wait_for_redis(client, read_redis_url(url))
    with pytest.raises(ApiSettingsError) as of_api:
        asyncio.run(check_redis(url))
    for message in (str(of_worker.value), str(of_api.value)):
        assert "VDIFF_REDIS_URL" in message
        assert words in message
        assert "localhost" in message or "127.0.0.1" in message
        for secret in (PASSWORD, quote(PASSWORD, safe=""), "wr0ng!"):
            assert secret not in message


def test_a_missing_certificate_and_a_server_without_tls_are_guessed_at(
    secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both look like a server that is away: one hangs up, the other waits for more.
    monkeypatch.setattr("worker.redis_connection.START_TIMEOUT_S", 0.0)
    monkeypatch.setattr("worker.redis_connection.CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr("worker.redis_connection.CALL_TIMEOUT_S", 0.2)
    with running_valkey(tcp=True) as plain:
        for url, words in {
            secured.url(has_certificate=False): "does it ask for a client's certificate",
            plain.url.replace("redis://", "rediss://"): "is it TLS that it speaks",
            secured.url().partition("?")[0].replace("rediss://", "redis://"): "begins with rediss:",
        }.items():
            with connect(url) as client, pytest.raises(SettingsError, match=words):
                wait_for_redis(client, read_redis_url(url))


@pytest.mark.parametrize("part", ["api", "tests.fake_worker"])
def test_a_user_without_rights_stops_the_start_of_each_part(secured: Secured, part: str) -> None:
    environ = {**os.environ, "VDIFF_REDIS_URL": secured.url(user="nobody"), "VDIFF_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-m", part],
        env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "VDIFF_REDIS_URL" in done.stderr
    assert "does not let this user do its work" in done.stderr
    assert quote(PASSWORD, safe="") not in done.stderr
