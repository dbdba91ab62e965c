"""Whole forwards in machine code for CPUs: kernels that numba and LLVM compile on the machine.

Compiled once and kept: some twelve seconds at the first start. The folder is named by the sources,
because numba looks only at the file of each kernel, and a kernel holds code of others.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numba
from numba.core import event

from engine.models.cpu.collector_pause import CollectorPause


def _cache_folder() -> str:
    """A folder of this user's: what is kept there is run."""
    digest = hashlib.blake2b(digest_size=8)
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "dfastllm" / f"kernels-{digest.hexdigest()}"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return str(folder)
    except (OSError, RuntimeError):  # no home, or one that cannot be written
        pass
    return tempfile.mkdtemp(prefix="dfastllm-kernels-")


_config: Any = numba.config  # whose names are made as it is imported
if not _config.CACHE_DIR:
    _config.CACHE_DIR = _cache_folder()
event.register("numba:compile", CollectorPause())  # type: ignore[no-untyped-call]
