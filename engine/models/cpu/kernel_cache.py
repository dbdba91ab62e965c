"""numba's files of compiled kernels, written by one process at a time."""

from __future__ import annotations

import fcntl
from contextlib import suppress
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache


class KernelCache(FunctionCache):
    """Lets nobody else write while a kernel is filed.

    A kernel's files are numbered, an index says which number is for which types. Two processes
    that filed it at once for different types would take one number, and find each other's code.
    """

    def save_overload(self, sig: Any, data: Any) -> None:
        folder = Path(self.cache_path)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:  # given back by the system, if we are killed
            with suppress(OSError):  # some file systems have no locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            super().save_overload(sig, data)  # type: ignore[no-untyped-call] # numba has few types
