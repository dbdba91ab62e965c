"""`VDIFF_REDIS_URL`: what it says, what is refused, and that nothing of a secret is ever shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from api import redis_connection as of_api
from worker import redis_connection as of_worker
from worker.wire.redis_faults import why_unfit
from worker.wire.redis_url import RedisUrlError, read_redis_url

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("redis://", {"host": "localhost", "port": 6379, "db": 0}),
        ("redis://10.0.0.1:7000/3", {"host": "10.0.0.1", "port": 7000, "db": 3}),
        ("redis://[::1]:7000", {"host": "::1", "port": 7000, "db": 0}),
        (
            "redis://api:p%40%2F%3A%23s@h",
            {"host": "h", "port": 6379, "db": 0, "username": "api", "password": "p@/:#s"},
        ),
        ("redis://:p@w@h", {"host": "h", "port": 6379, "db": 0, "password": "p@w"}),
        ("unix:///run/a%20b.sock?db=2", {"path": "/run/a b.sock", "db": 2}),
        (
            "rediss://h/1?ssl_check_hostname=false&ssl_cert_reqs=none&socket_timeout=2.5",
            {
                "host": "h",
                "port": 6379,
                "db": 1,
                "socket_timeout": 2.5,
                "ssl_check_hostname": False,
                "ssl_cert_reqs": "none",
            },
        ),
    ],
)
def test_a_plain_address_says_where_and_how(url: str, options: dict[str, Any]) -> None:
    address = read_redis_url(url)
    assert address.options == options
    assert address.sentinels == ()
    assert address.is_tls == url.startswith("rediss")


def test_an_address_of_sentinels_names_them_the_service_and_both_passwords() -> None:
    address = read_redis_url(
        "rediss+sentinel://api:one%21@s1:26380,s2,[::1]:1/mymaster/2"
        "?sentinel_username=watch&sentinel_password=two&ssl_check_hostname=false"
    )
    assert address.sentinels == (("s1", 26380), ("s2", 26379), ("::1", 1))
    assert (address.service, address.is_tls) == ("mymaster", True)
    tls = {"ssl_check_hostname": False}
    assert address.options == {"db": 2, "username": "api", "password": "one!"} | tls
    assert address.sentinel_options == {"username": "watch", "password": "two"} | tls


@pytest.mark.parametrize(
    "url",
    [
        "localhost",
        f"http://:{SECRET}@h",
        f"redis://:{SECRET}/x@h/0",
        f"redis://:1/{SECRET}@h/0",
        f"redis://:{SECRET}#x@h/0",
        f"redis://:x?{SECRET}@h/0",
        f"redis://:{SECRET}@h:port/0",
        f"redis://:{SECRET}@h/zero",
        f"redis://:{SECRET}@h/0/1",
        f"redis://:{SECRET}@h1,h2/0",
        f"redis://h/0?pasword={SECRET}",
        f"redis://h/0?socket_timeout={SECRET}",
        f"redis://:{SECRET}@h/0?ssl_cert_reqs=none",
        f"redis://:{SECRET}@h/0?sentinel_password=x",
        f"rediss://:{SECRET}@h/0?ssl_ca_certs=/no/such/file",
        f"unix://:{SECRET}@host/run/s",
        f"unix://:{SECRET}@/",
        f"redis+sentinel://:{SECRET}@h",
        f"redis+sentinel://:1/{SECRET}@h/mymaster",
        f"redis+sentinel://:{SECRET}@h/mymaster/0?sentinel_ssl_ca_certs=/etc/hosts",
    ],
)
def test_what_cannot_be_meant_is_refused_by_name_and_shows_no_secret(url: str) -> None:
    with pytest.raises(RedisUrlError, match="VDIFF_REDIS_URL") as caught:
        read_redis_url(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "url",
    [
        f"redis://{SECRET}:{SECRET}@h:1/0",
        f"rediss://h:1/0?password={SECRET}&ssl_password={SECRET}",
        f"redis+sentinel://:{SECRET}@h:1/m?sentinel_password={SECRET}",
    ],
)
def test_nothing_that_is_printed_holds_a_secret(url: str) -> None:
    address = read_redis_url(url)
    printed = f"{address!r} {address.name} {of_worker.connect(url)!r} {of_api.connect(url)!r}"
    assert SECRET not in printed
    with of_worker.connect(url) as client, pytest.raises(Exception) as caught:
        client.ping()
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


def test_certificates_are_files_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    address = read_redis_url(f"rediss://h?ssl_ca_certs={tmp_path}/ca.pem")
    assert address.options["ssl_ca_certs"] == f"{tmp_path}/ca.pem"


@pytest.mark.parametrize(
    ("info", "word"),
    [
        ({"redis_version": "6.2.14"}, "7.0"),
        ({"redis_version": "7.2.4", "cluster_enabled": 1}, "cluster"),
        ({"maxmemory": 100, "maxmemory_policy": "volatile-lru"}, "noeviction"),
    ],
)
def test_a_server_that_would_lose_jobs_is_refused(info: dict[str, Any], word: str) -> None:
    assert word in (why_unfit(info) or "")


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"redis_version": "8.0.0", "maxmemory": 100, "maxmemory_policy": "noeviction"},
        {"redis_version": "7.0.15", "maxmemory": 0, "maxmemory_policy": "allkeys-lru"},
    ],
)
def test_any_other_server_may_hold_the_queue(info: dict[str, Any]) -> None:
    assert why_unfit(info) is None
