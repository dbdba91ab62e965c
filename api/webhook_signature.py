"""Signatures of webhooks, as standardwebhooks.com defines them (`v1`, HMAC-SHA256).

By hand: the published library brings five packages for what is one call of `hmac`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

PREFIX = "whsec_"
MIN_BYTES, MAX_BYTES = 24, 64  # what the specification asks of a secret


def secret_bytes(secret: str) -> bytes:
    """Return the key in a secret: base64 after `whsec_`, or the text itself.

    Raises ValueError, whose words go on after the secret's name.
    """
    try:
        is_coded = secret.startswith(PREFIX)
        key = (
            base64.b64decode(secret.removeprefix(PREFIX), validate=True)
            if is_coded
            else secret.encode()
        )
    except binascii.Error:
        raise ValueError(f"must be base64 after '{PREFIX}'") from None
    if not MIN_BYTES <= len(key) <= MAX_BYTES:
        raise ValueError(f"must be {MIN_BYTES} to {MAX_BYTES} bytes long, not {len(key)}")
    return key


def signed_headers(key: bytes, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers that say who sent a body and when (`timestamp`: Unix seconds)."""
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
