"""Where a webhook may go: checked when it is named, and again, by address, when it is sent."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import NamedTuple

import httpx

from api.errors import InvalidRequestError
from api.job_schemas import WebhookParam
from api.settings import ApiSettings
from api.webhook_signature import secret_bytes
from worker.wire.job_record import Webhook

MAX_URL_LENGTH = 2048

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Reachable at a public address, but answered by the host's own cloud, with its secrets.
_METADATA = frozenset({ipaddress.ip_address("168.63.129.16")})


class RefusedTargetError(Exception):
    """A webhook must not go there, however often it is tried."""


class Target(NamedTuple):
    """A webhook's address, looked up once: what is connected to is what was checked."""

    url: httpx.URL  # with the address in place of the name
    host: str  # the name, for the certificate
    host_header: str


def webhook_of(wanted: WebhookParam, settings: ApiSettings) -> Webhook:
    """Check a webhook as far as can be told without asking anybody; raises InvalidRequestError."""
    try:
        _check_url(wanted.url, settings.webhook_networks)
    except RefusedTargetError as error:
        raise InvalidRequestError(f"'webhook.url' {error}.", param="webhook.url") from None
    try:
        secret_bytes(wanted.secret or settings.webhook_secret)
    except ValueError as error:
        raise InvalidRequestError(
            f"'webhook.secret' {error}; without one VDIFF_WEBHOOK_SECRET would have to be set.",
            param="webhook.secret",
        ) from None
    return Webhook(wanted.url, wanted.secret or "")


async def find_target(url: str, networks: Sequence[str]) -> Target:
    """Look up a webhook's host. Raises RefusedTargetError, or OSError where it is not found.

    Every address of the name must be allowed: the next look-up may put another one first.
    """
    parsed = _check_url(url, networks)
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(parsed.host, port, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
    for address in addresses:
        _check_address(address, networks, is_plain=parsed.scheme == "http")
    pinned = parsed.copy_with(host=str(addresses[0]))
    return Target(pinned, parsed.host, parsed.netloc.decode("ascii"))


def is_public(address: Address) -> bool:
    """Say whether an address is on the public internet, also where it wraps another one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.sixtofour is not None or address.teredo is not None:
            return False  # tunnels to an address of the sender's choice
    is_special = address.is_multicast or address.is_reserved or address in _METADATA
    return address.is_global and not is_special


def _check_url(url: str, networks: Sequence[str]) -> httpx.URL:
    """Raise RefusedTargetError, whose words go on after the field's name."""
    if len(url) > MAX_URL_LENGTH:
        raise RefusedTargetError(f"is longer than {MAX_URL_LENGTH} characters")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise RefusedTargetError(f"is no URL: {error}") from None
    if parsed.scheme != "https" and not (parsed.scheme == "http" and networks):
        raise RefusedTargetError("must begin with https://")
    if not _HOST.fullmatch(parsed.raw_host.decode()) or parsed.userinfo:
        raise RefusedTargetError("must name a host, without user or password")
    try:
        address = ipaddress.ip_address(parsed.host)
    except ValueError:
        return parsed  # a name; it is looked up when it is needed
    _check_address(address, networks, is_plain=parsed.scheme == "http")
    return parsed


def _check_address(address: Address, networks: Sequence[str], *, is_plain: bool) -> None:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    is_named = any((mapped or address) in ipaddress.ip_network(network) for network in networks)
    if is_named or (is_public(address) and not is_plain):
        return
    if is_plain:
        raise RefusedTargetError(f"must begin with https:// to go to {address}")
    raise RefusedTargetError(
        f"leads to {address}, which is not on the public internet (see VDIFF_WEBHOOK_NETWORKS)"
    )
