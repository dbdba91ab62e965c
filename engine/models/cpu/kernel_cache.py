"""numba's files of compiled kernels, written by one process at a time."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache

log = logging.getLogger("dfastllm.engine")


class KernelCache(FunctionCache):
    """Lets nobody else write while a kernel is filed, and stands files that are no good.

    A kernel's files are numbered, an index says which number is for which types. Two processes
    that filed it at once for different types would take one number, and find each other's code.
    What cannot be read or filed costs compiling it again.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except Exception as error:  # as many kinds as there are ways to be damaged
            log.warning("a compiled kernel in %s cannot be read (%s)", self.cache_path, error)
            with suppress(OSError), self._alone():
                self.flush()  # type: ignore[no-untyped-call]
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            with self._alone():
                super().save_overload(sig, data)  # type: ignore[no-untyped-call] # numba has few
        except OSError as error:
            log.warning("a compiled kernel cannot be kept in %s: %s", self.cache_path, error)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        folder = Path(self.cache_path)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:  # given back by the system, if we are killed
            with suppress(OSError):  # some file systems have no locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
