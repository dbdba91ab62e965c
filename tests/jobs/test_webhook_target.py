"""Where webhooks may not go, and what a signature looks like."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import httpx
import pytest

from api.settings import ApiSettings, SettingsError
from api.webhook_signature import secret_bytes, signed_headers
from api.webhook_target import RefusedTargetError, find_target, is_public
from tests.jobs.servers import job

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "168.63.129.16", "192.0.2.1", "198.18.0.1", "224.0.0.1",
    "240.0.0.1", "255.255.255.255",
    "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0::1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_known(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_known(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/", "ftp://example.com/", "//example.com/", "example.com", "https://",
        "https://user:pass@example.com/", "https://127.0.0.1/", "https://[::1]/", "https://10.0.0.1",
        "https://169.254.169.254/latest/meta-data/", "https://[::ffff:127.0.0.1]/", "https://[",
        "https://example.com/" + "x" * 2048,
    ],
)  # fmt: skip
def test_what_can_be_refused_at_once_is_refused_at_once(api: httpx.Client, url: str) -> None:
    response = api.post("/v1/jobs", json=job(webhook={"url": url, "secret": "s" * 24}))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "webhook.url"


def test_without_a_good_secret_there_is_no_webhook(api: httpx.Client) -> None:
    for secret in (None, "short", "whsec_!!!", "whsec_c2hvcnQ=", "x" * 65):
        webhook = {"url": "https://example.com/", "secret": secret}
        response = api.post("/v1/jobs", json=job(webhook=webhook))
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "webhook.secret"


def _resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        kind = socket.AF_INET
        return [(kind, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_name_is_looked_up_once_and_what_was_checked_is_what_is_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = _resolve_to(monkeypatch, "1.1.1.1", "8.8.8.8")
    target = asyncio.run(find_target("https://example.com:8443/a?b=c", ()))
    assert str(target.url) == "https://1.1.1.1:8443/a?b=c"
    assert (target.host, target.host_header) == ("example.com", "example.com:8443")
    assert asked == ["example.com"]


@pytest.mark.parametrize("addresses", [("10.0.0.1",), ("1.1.1.1", "127.0.0.1")])
def test_a_name_that_leads_inside_is_refused_whatever_it_led_to_before(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]
) -> None:
    _resolve_to(monkeypatch, *addresses)
    with pytest.raises(RefusedTargetError, match="not on the public internet"):
        asyncio.run(find_target("https://example.com/", ()))


def test_a_named_network_is_allowed_and_only_there_is_http(monkeypatch: pytest.MonkeyPatch) -> None:
    _resolve_to(monkeypatch, "10.0.0.1")
    networks = ("10.0.0.0/8",)
    assert asyncio.run(find_target("http://inside/", networks)).url.host == "10.0.0.1"
    assert asyncio.run(find_target("https://inside/", networks)).url.host == "10.0.0.1"
    _resolve_to(monkeypatch, "192.168.0.1")
    with pytest.raises(RefusedTargetError):
        asyncio.run(find_target("https://other/", networks))
    _resolve_to(monkeypatch, "1.1.1.1")
    with pytest.raises(RefusedTargetError, match="https://"):
        asyncio.run(find_target("http://example.com/", networks))


def test_the_signature_is_the_one_of_the_published_example() -> None:
    # The test vector of the standard's own libraries.
    headers = signed_headers(
        secret_bytes("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("field", "value"), [("webhook_secret", "short"), ("webhook_networks", ("10.0.0.1/8",))]
)
def test_a_bad_setting_is_named(field: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"VDIFF_{field.upper()}"):
        ApiSettings(**{field: value})
