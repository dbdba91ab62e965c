"""How kernels are compiled and kept: once, without what slows it down, and soundly."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import njit, types
from numba.core.caching import IndexDataCacheFile
from numba.core.errors import TypingError
from numba.core.event import Listener, install_listener

from engine.models.cpu.kernel import by_types, inner_kernel, reordering_kernel
from engine.models.cpu.kernel_cache import KernelCache
from tests.engine.kernel_entries import entry

KERNEL = """
from engine.models.cpu.kernel import kernel

@kernel
def twice(x):
    return 2 * x
"""
CALL = """
import os, signal
from numba.core.caching import IndexDataCacheFile
from numba.core.event import install_recorder
from twice import twice

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def find_it_full(*_):
    raise OSError(28, "No space left on device")

%s
with install_recorder("numba:compile") as compiled:
    assert twice(4) == 8
print(len(compiled.buffer))
"""
DYING = ("IndexDataCacheFile._save_index = die", "IndexDataCacheFile._save_data = die")


@inner_kernel
def scaled(x, factor):  # type: ignore[no-untyped-def]
    return x * factor


def call_kernel(folder: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """In a process of its own, whose cache is in that folder."""
    (folder / "twice.py").write_text(KERNEL)
    path = os.pathsep.join((str(folder), str(Path.cwd())))
    return subprocess.run(
        [sys.executable, "-c", CALL % before],
        env={**os.environ, "XDG_CACHE_HOME": str(folder), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


def has_compiled(folder: Path) -> bool:
    done = call_kernel(folder)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) > 0


@pytest.mark.parametrize("death", DYING, ids=["before the index", "between index and code"])
def test_a_process_that_is_killed_while_it_files_a_kernel_is_no_harm_to_others(
    tmp_path: Path, death: str
) -> None:
    assert call_kernel(tmp_path, death).returncode == -signal.SIGKILL
    assert has_compiled(tmp_path)
    assert not has_compiled(tmp_path)


@pytest.mark.parametrize("kind", ["nbi", "nbc"], ids=["index", "code"])
def test_files_that_cannot_be_read_are_made_anew(tmp_path: Path, kind: str) -> None:
    assert has_compiled(tmp_path)
    [damaged] = tmp_path.rglob(f"twice.twice*.{kind}")
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert has_compiled(tmp_path)
    assert not has_compiled(tmp_path)


def test_a_full_disk_costs_no_more_than_compiling_again(tmp_path: Path) -> None:
    for place in ("_save_index", "_save_data"):
        done = call_kernel(tmp_path, f"IndexDataCacheFile.{place} = find_it_full")
        assert done.returncode == 0, done.stderr
    assert has_compiled(tmp_path)
    assert not has_compiled(tmp_path)


def test_two_that_file_a_kernel_for_different_types_at_once_find_their_own_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)
    save_index = IndexDataCacheFile._save_index

    def meet_and_save(self: Any, overloads: Any) -> None:
        """Both have read the index before either writes it, if that can be."""
        with suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.5)
        save_index(self, overloads)

    compiled = njit(lambda x: x + x)  # and not found among what earlier tests have filed
    signatures = [(types.int64,), (types.float64,)]
    for signature in signatures:
        compiled.compile(signature)
    cache = KernelCache(compiled.py_func)
    monkeypatch.setattr(cache, "_cache_file", own_file(tmp_path))
    monkeypatch.setattr(IndexDataCacheFile, "_save_index", meet_and_save)
    threads = [
        threading.Thread(target=cache.save_overload, args=(one, compiled.overloads[one]))
        for one in signatures
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for signature in signatures:
        kept = cache.load_overload(signature, compiled.targetctx)
        assert kept.signature.args == signature


def own_file(folder: Path) -> IndexDataCacheFile:
    return IndexDataCacheFile(str(folder), "kernel", source_stamp=0)


def test_no_constant_has_code_of_its_own() -> None:
    @inner_kernel
    def sum_of_both(x):  # type: ignore[no-untyped-def]
        return scaled(x, 2) + scaled(x, 3) + scaled(x, np.int64(x))

    before = len(scaled.overloads)
    assert entry(sum_of_both)(4) == 4 * (2 + 3 + 4)
    assert len(scaled.overloads) == before + 1


@pytest.mark.parametrize("decorate", [inner_kernel, reordering_kernel])
def test_python_is_told_that_it_cannot_call_an_inner_kernel(decorate: Any) -> None:
    inner = decorate(lambda x: x)
    assert entry(inner)(3) == 3
    with pytest.raises(TypeError, match="is called by kernels alone"):
        inner(3)


def test_python_is_told_that_it_cannot_call_what_is_chosen_by_types() -> None:
    kind = by_types(lambda x: (lambda x: 1) if x == types.int64 else (lambda x: 2))
    assert (entry(kind)(3), entry(kind)(3.0)) == (1, 2)
    with pytest.raises(TypeError, match="is called by kernels alone"):
        kind(3)


@pytest.mark.parametrize("is_on", [True, False], ids=["on", "off"])
def test_the_garbage_collector_rests_while_a_kernel_is_compiled_and_no_longer(is_on: bool) -> None:
    was_on, watch = gc.isenabled(), Watch()
    try:
        (gc.enable if is_on else gc.disable)()
        with install_listener("numba:run_pass", watch):
            entry(inner_kernel(lambda x: scaled(x, 2.0)))(1.0)
            with pytest.raises(TypingError):
                entry(inner_kernel(lambda x: x.no_such_thing))(1.0)
        assert gc.isenabled() == is_on
    finally:
        (gc.enable if was_on else gc.disable)()
    assert watch.found == {False}


class Watch(Listener):
    """Whether the collector is on, at each step of compiling."""

    def __init__(self) -> None:
        self.found: set[bool] = set()

    def on_start(self, event: object) -> None:
        self.found.add(gc.isenabled())

    def on_end(self, event: object) -> None:
        self.found.add(gc.isenabled())
