"""Seals pages that leave the process, and opens only what was sealed by one of us."""

from __future__ import annotations

import hashlib
import hmac

SEAL_BYTES = 16


class BrokenSealError(ValueError):
    """What was read is not what one of us has written under this digest."""


class PageSeal:
    """A checksum (HMAC-SHA256, cut to 128 bits) over tag, digest and content.

    With a secret nobody without it can plant a page, nor pass one off as another. Without one
    corruption is noticed, and no more. Workers with other secrets, models or layouts have another
    namespace, so that they do not even see each other's pages.
    """

    def __init__(self, tag: bytes, page_bytes: int, secret: str = "") -> None:
        self.page_bytes = page_bytes
        self._tag = tag
        self._key = hashlib.blake2b(secret.encode(), person=b"dfastllm pages").digest()
        name = hashlib.blake2b(tag, key=self._key, digest_size=12, person=b"namespace")
        self.namespace = name.hexdigest()

    @property
    def sealed_bytes(self) -> int:
        return SEAL_BYTES + self.page_bytes

    def seal(self, digest: bytes, content: memoryview) -> bytes:
        return b"".join((self._checksum(digest, content), content))

    def open(self, digest: bytes, sealed: bytes) -> memoryview:
        """The content; raises BrokenSealError."""
        if len(sealed) != self.sealed_bytes:
            raise BrokenSealError(f"{len(sealed)} bytes instead of {self.sealed_bytes}")
        content = memoryview(sealed)[SEAL_BYTES:]
        if not hmac.compare_digest(self._checksum(digest, content), sealed[:SEAL_BYTES]):
            raise BrokenSealError("the checksum is another")
        return content

    def _checksum(self, digest: bytes, content: memoryview) -> bytes:
        mac = hmac.new(self._key, self._tag + digest, "sha256")
        mac.update(content)
        return mac.digest()[:SEAL_BYTES]
