"""The API keys: which there are, what each may do, and whose request a header makes it."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from api.errors import AuthenticationError

ANONYMOUS = "anonymous"

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Limits(Struct, frozen=True, kw_only=True):
    """What one key may send in a window; 0: any number."""

    requests: int = 0
    tokens: int = 0


class KeyEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key in the keys file: its SHA-256, never the key; what it does not limit is as for all."""

    sha256: str
    name: str = ""
    requests: int | None = None
    tokens: int | None = None


class Tenant(Struct, frozen=True):
    """Whose request it is: a name that tells nothing of the key, and its limits."""

    name: str
    limits: Limits


class _KeysFile(Struct, frozen=True, forbid_unknown_fields=True):
    keys: list[KeyEntry]


class KeyRing:
    """Finds the tenant of a header, in a time that tells nothing of the keys."""

    def __init__(self, entries: Sequence[KeyEntry], limits: Limits) -> None:
        """`limits` are those of keys that say nothing, and of everybody where there are no keys."""
        self._limits = limits
        self._known = [
            (bytes.fromhex(entry.sha256), _limits_of(entry, limits)) for entry in entries
        ]

    @property
    def is_open(self) -> bool:
        return not self._known

    def tenant_of(self, header: str) -> Tenant:
        """Return the tenant behind an Authorization header; raises AuthenticationError."""
        if self.is_open:
            return Tenant(ANONYMOUS, self._limits)
        scheme, _, given = header.partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise AuthenticationError(
                "Send your API key in the header 'Authorization: Bearer KEY'."
            )
        key = given.strip().encode("utf-8", "replace")
        digest = hashlib.sha256(key).digest()
        # Every key is compared, whether or not one has been found.
        found = [limits for known, limits in self._known if hmac.compare_digest(digest, known)]
        if not found:
            raise AuthenticationError("The API key is not valid here.")
        return Tenant(hashlib.sha256(b"dfastllm tenant\0" + key).hexdigest()[:16], found[0])


def ring_of(api_keys: Sequence[str], keys_file: str, limits: Limits) -> KeyRing:
    """Put the keys of both settings together; raises ValueError for a file that cannot be used."""
    entries = [KeyEntry(sha256=hashlib.sha256(key.encode()).hexdigest()) for key in api_keys]
    if keys_file:
        entries += _read(Path(keys_file).expanduser())
    return KeyRing(entries, limits)


def _read(path: Path) -> list[KeyEntry]:
    try:
        found = msgspec.toml.decode(path.read_bytes(), type=_KeysFile).keys
    except (OSError, msgspec.DecodeError) as error:
        raise ValueError(f"cannot be read: {error}") from None
    if not found:
        raise ValueError("holds no keys, which would open the server to all")
    for number, entry in enumerate(found, 1):
        if _SHA256.fullmatch(entry.sha256) is None:
            raise ValueError(f"key {number}: 'sha256' must be 64 hexadecimal digits")
        for name in ("requests", "tokens"):
            if (getattr(entry, name) or 0) < 0:
                raise ValueError(f"key {number}: '{name}' must be 0 (any number) or more")
    return found


def _limits_of(entry: KeyEntry, default: Limits) -> Limits:
    return Limits(
        requests=default.requests if entry.requests is None else entry.requests,
        tokens=default.tokens if entry.tokens is None else entry.tokens,
    )
