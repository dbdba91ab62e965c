"""The bytes of files, in one folder that all API processes share."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

ORPHAN_AGE_S = 86400
"""A file on disk that nothing knows is not dropped sooner: its record may be on its way."""

# What was made here, and nothing else that may lie in the folder.
_OURS = re.compile(r"(file-|batch_)[0-9a-f]{32}(\.[a-z0-9.-]+)?")


class FileDisk:
    """Blocking: call it from a thread. A file appears whole, under its name, or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, file_id: str) -> Path:
        # Ids are made here and never by a client, who may still ask for any name.
        if not file_id.isascii() or not file_id.replace("-", "").replace("_", "").isalnum():
            raise FileNotFoundError(file_id)
        return self._folder / file_id

    def part(self, batch_id: str, epoch: int) -> Path:
        """Name the file into which one worker on a batch writes its results."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self._folder / f"{batch_id}.part-{epoch}"

    def parts(self, batch_id: str) -> list[Path]:
        return sorted(self._folder.glob(f"{batch_id}.part-*"))

    def write(self, file_id: str, chunks: Iterator[bytes], expires_at: int) -> int:
        """Write a file and return its size in bytes; raises OSError, and then there is none.

        Its time on disk is `expires_at`: servers of other queues, which do not know it, can tell
        that it is not theirs to drop yet.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        target = self.path(file_id)
        draft = target.with_name(f"{target.name}.{secrets.token_hex(4)}.draft")
        try:
            with draft.open("xb") as out:
                for chunk in chunks:
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
            os.utime(draft, (expires_at, expires_at))
            draft.rename(target)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        return target.stat().st_size

    def drop(self, file_id: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path(file_id).unlink()

    def drop_name(self, name: str) -> None:
        """Drop one of `stale_names`."""
        (self._folder / name).unlink(missing_ok=True)

    def drop_parts(self, batch_id: str) -> None:
        for part in self.parts(batch_id):
            part.unlink(missing_ok=True)

    def stale_names(self) -> list[str]:
        """Return the names of our files whose time ended longer ago than a record's way to Redis.

        The time of what is half written is when it was last written to.
        """
        limit = time.time() - ORPHAN_AGE_S
        try:
            entries = list(os.scandir(self._folder))
        except FileNotFoundError:
            return []
        ours = [entry for entry in entries if _OURS.fullmatch(entry.name)]
        return [entry.name for entry in ours if entry.stat().st_mtime < limit]
