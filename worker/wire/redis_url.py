"""`VDIFF_REDIS_URL`: what may stand in it, and what it says about reaching Redis; no secret leaks.

Plain addresses are redis-py's. Those of Sentinel are spelled as rq-dashboard and others do:
`redis+sentinel://user:password@host:26379,host:26379/service/0?sentinel_password=...`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from redis.connection import URL_QUERY_ARGUMENT_PARSERS as PARSERS

NAME = "VDIFF_REDIS_URL"
SENTINEL_PORT = 26379
SENTINEL = "sentinel_"
"""What begins so is for the connections to the sentinels alone."""

_SCHEMES = {
    "redis": False,
    "rediss": True,
    "unix": False,
    "redis+sentinel": False,
    "rediss+sentinel": True,
}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_PARAMETERS = {
    *_FILES, "ssl_ca_path", "ssl_cert_reqs", "ssl_check_hostname", "ssl_ciphers",
    "ssl_min_version", "ssl_password",
    "username", "password", "db", "client_name", "protocol",
    "socket_timeout", "socket_connect_timeout", "socket_keepalive",
}  # fmt: skip
_HINT = "a password's special characters must be percent-encoded"


class RedisUrlError(ValueError):
    """An address that cannot be meant; the message names the setting and shows nothing of it."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{NAME} {message}")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """An address taken apart. Printing it shows no secret."""

    name: str
    """The address without user, password and parameters."""
    is_tls: bool
    options: Mapping[str, Any] = field(repr=False)
    """Arguments of redis-py's connections to the server; host and port, path, or neither."""
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Arguments of redis-py's clients of the sentinels."""


def read_redis_url(url: str) -> RedisAddress:
    """Take an address apart; raises RedisUrlError, whose message holds no part of the secrets."""
    scheme, _, rest = url.strip().partition("://")
    if scheme not in _SCHEMES:
        raise RedisUrlError(f"must begin with one of {'://, '.join(_SCHEMES)}://")
    rest, _, query = rest.partition("?")
    place, slash, tail = rest.partition("/")
    if "#" in url or "@" in tail:
        raise RedisUrlError(f"has a '#', or an '@' after a '/' ({_HINT})")
    user_info, _, where = place.rpartition("@")
    given = _credentials(user_info) | _parameters(query)
    _check_fit(scheme, given)
    if scheme == "unix":
        return _of_socket(where, slash + tail, given)
    hosts = tuple(_host(text, scheme) for text in where.split(","))
    name = f"{scheme}://{where}{slash}{tail}"
    path = [unquote(step) for step in tail.split("/") if step]
    if "sentinel" in scheme:
        return _of_sentinels(name, hosts, path, given)
    return _of_server(name, hosts, path, given)


def _check_fit(scheme: str, given: Mapping[str, Any]) -> None:
    for name in given:
        if "ssl_" in name and not _SCHEMES[scheme]:
            raise RedisUrlError(f"has {name}, but only rediss:// and rediss+sentinel:// are TLS")
        if name.startswith(SENTINEL) and "sentinel" not in scheme:
            raise RedisUrlError(f"has {name}, but names no sentinels (redis+sentinel://)")


def _of_server(
    name: str, hosts: Sequence[tuple[str, int]], path: Sequence[str], given: dict[str, Any]
) -> RedisAddress:
    if len(hosts) > 1:
        raise RedisUrlError("names several hosts, which only redis+sentinel:// may")
    host, port = hosts[0]
    options = {"db": _database(path), "host": host, "port": port} | given
    return RedisAddress(name, name.startswith("rediss"), options)


def _of_socket(where: str, path: str, given: dict[str, Any]) -> RedisAddress:
    if where or not path.strip("/"):
        raise RedisUrlError("must be unix:///path/to/the/socket")
    return RedisAddress(f"unix://{path}", False, {"path": unquote(path)} | given)


def _of_sentinels(
    name: str, hosts: tuple[tuple[str, int], ...], path: Sequence[str], given: dict[str, Any]
) -> RedisAddress:
    if not path:
        raise RedisUrlError("must name the service after the sentinels: .../mymaster/0")
    own = {key: value for key, value in given.items() if not key.startswith(SENTINEL)}
    # Sentinels are the same house: what says how TLS is done holds for them unless they say else.
    shared = {key: value for key, value in own.items() if key.startswith("ssl_")}
    theirs = {key.removeprefix(SENTINEL): given[key] for key in given.keys() - own.keys()}
    options = {"db": _database(path[1:])} | own
    return RedisAddress(name, name.startswith("rediss"), options, hosts, path[0], shared | theirs)


def _credentials(user_info: str) -> dict[str, Any]:
    user, _, password = user_info.partition(":")
    found = {"username": unquote(user), "password": unquote(password)}
    return {name: value for name, value in found.items() if value}


def _parameters(query: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for full, values in parse_qs(query, keep_blank_values=True).items():
        name = full.removeprefix(SENTINEL)
        if name not in _PARAMETERS:
            # Not the name itself: it may be the rest of a password that holds a question mark.
            raise RedisUrlError(f"has a parameter that is none of {', '.join(sorted(_PARAMETERS))}")
        try:
            found[full] = PARSERS.get(name, str)(values[-1])  # type: ignore[operator]
        except (TypeError, ValueError):
            raise RedisUrlError(f"has a bad value for {full}") from None
        if name in _FILES and not Path(values[-1]).is_file():
            raise RedisUrlError(f"names a file for {full} that is not there: {values[-1]}")
    return found


def _host(text: str, scheme: str) -> tuple[str, int]:
    default = SENTINEL_PORT if "sentinel" in scheme else 6379
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise RedisUrlError(f"has a host or port that is none ({_HINT})") from None
    if parts.path or parts.netloc != text:
        raise RedisUrlError(f"has a host that is none ({_HINT})")
    return unquote(host or "localhost"), default if port is None else port


def _database(path: Sequence[str]) -> int:
    if not path:
        return 0
    if len(path) > 1 or not path[0].isdecimal():
        raise RedisUrlError(f"must end in the number of a database, as in .../0 ({_HINT})")
    return int(path[0])
