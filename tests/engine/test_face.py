"""The engine's face: one sorted list of names, each of which is there when it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import engine

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", engine.__all__)
def test_a_name_of_the_face_is_the_one_of_its_own_module(name: str) -> None:
    found = getattr(engine, name)
    assert found.__name__ == name
    assert getattr(sys.modules[found.__module__], name) is found
    assert found.__module__.startswith("engine.")


def test_the_face_is_sorted_and_shown_and_no_name_is_there_twice() -> None:
    assert engine.__all__ == sorted(set(engine.__all__))
    assert set(engine.__all__) <= set(dir(engine))
    with pytest.raises(AttributeError, match="module 'engine' has no attribute 'HybridMode'"):
        engine.HybridMode  # noqa: B018 asking is the test


def test_the_face_alone_imports_no_torch() -> None:
    program = "import sys, engine; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
