"""Ways into kernels that kernels alone call."""

from __future__ import annotations

from typing import Any

from numba import njit


def entry(inner: Any) -> Any:
    """The same function for Python to call."""
    return njit(nogil=True)(lambda *args: inner(*args))
