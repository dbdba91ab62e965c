"""How kernels are compiled: without Python's lock, kept on disk, dividing as NumPy does.

Python's division looks for zeros, and a loop that may raise is never made into vectors.
"""

from __future__ import annotations

from typing import Any

from numba import njit

kernel: Any = njit(nogil=True, cache=True, error_model="numpy")
"""For code whose every result is to be the same however it is called."""

_LIBERTIES = {"reassoc", "contract", "arcp", "nsz", "nnan"}  # infinities stay: bans are such

reordering_kernel: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath=_LIBERTIES)
"""May add in another order: for loops whose length no batch changes."""
