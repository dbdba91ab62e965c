"""Benchmarks are tested on the engine tests' tiny pair of models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engine.engines import TinyModels, load_models
from tests.engine.tiny_models import save_pair, tiny_drafter, tiny_qwen3
from tests.engine.tiny_tokenizers import make_byte_level

torch.set_num_threads(1)  # as in the engine's tests


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a tiny verifier that reads long prompts, and of its drafter."""
    verifier = tiny_qwen3(initializer_range=0.06, max_position_embeddings=512)
    folders = save_pair(tmp_path_factory.mktemp("pair"), verifier, tiny_drafter(block_size=4))
    make_byte_level(folders[0])
    return folders


@pytest.fixture(scope="session")
def models(pair: tuple[Path, Path]) -> TinyModels:
    return load_models(*pair)
