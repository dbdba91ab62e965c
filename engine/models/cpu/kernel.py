"""How kernels are compiled: without Python's lock, kept on disk, dividing as NumPy does.

Python's division looks for zeros, and a loop that may raise is never made into vectors.
"""

from __future__ import annotations

from functools import partial, update_wrapper
from typing import Any, NoReturn

from numba import njit
from numba.extending import overload

from engine.models.cpu.inner_kernel import InnerKernel
from engine.models.cpu.kernel_cache import KernelCache

_OPTIONS: Any = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
_LIBERTIES = {"reassoc", "contract", "arcp", "nsz", "nnan"}  # infinities stay: bans are such

inner_kernel: Any = partial(InnerKernel, options=_OPTIONS)
"""For what kernels alone call, and whose every result is to be the same however it is called."""

reordering_kernel: Any = partial(InnerKernel, options={**_OPTIONS, "fastmath": _LIBERTIES})
"""An inner one that may add in another order: for loops whose length no batch changes."""


def kernel(function: Any) -> Any:
    """For what Python calls."""
    compiled: Any = njit(**_OPTIONS)(function)
    compiled._cache = KernelCache(function)  # type: ignore[no-untyped-call]
    return compiled


def by_types(choose: Any) -> Any:
    """A function that only kernels call, and whose code `choose` picks by the arguments' types."""

    def chosen(*_: object) -> NoReturn:
        raise TypeError(f"{choose.__name__} is called by kernels alone")

    overload(chosen)(choose)
    return update_wrapper(chosen, choose)
