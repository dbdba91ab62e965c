"""Engine tests: one torch thread, one tiny pair of models a session, new pages for each test."""

from __future__ import annotations

import pytest
import torch

from engine.models.cpu import team
from engine.models.cpu.attendance import Attendance
from tests.engine.engines import TinyModels, load_tiny_models
from tests.engine.tiny_diffusion import load_shipped

torch.set_num_threads(1)  # tiny matrices gain nothing from more, and busy neighbours cost much


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """A small real verifier, drafter and tokenizer, read from their folders."""
    return load_tiny_models(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def shipped() -> TinyModels:
    """The verifier that ships, with its diffusion model instead of its drafter."""
    return load_shipped()


@pytest.fixture
def all_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teams of threads leave nobody out, however small their kernels and however busy the cores."""
    monkeypatch.setattr(team, "_MIN_PRODUCTS", 0)
    monkeypatch.setattr(Attendance, "note", lambda *_: None)
