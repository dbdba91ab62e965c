"""Who gets the threads that an engine is given: the kernels, or torch where they do not run."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from engine.build import EngineConfig, build_engine
from tests.engine.tiny_models import save_pair, tiny_drafter, tiny_qwen3
from tests.engine.tiny_tokenizers import make_byte_level

pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pair")
    folders = save_pair(folder, tiny_qwen3(head_dim=32), tiny_drafter(head_dim=32))
    make_byte_level(folders[0])
    return str(folders[0])


def test_the_kernels_get_the_threads_and_torch_which_samples_keeps_one(
    verifier: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="dfastllm.engine"):
        build_engine(EngineConfig(model_path=verifier, num_threads=3))
    assert torch.get_num_threads() == 1
    assert "CPU kernels: 3 threads" in caplog.text


def test_where_the_kernels_do_not_run_torch_gets_the_threads(verifier: str) -> None:
    build_engine(EngineConfig(model_path=verifier, num_threads=3, cpu_kernels=False))
    assert torch.get_num_threads() == 3


def test_who_names_no_number_keeps_torchs_and_the_kernels_get_as_many(
    verifier: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.set_num_threads(2)
    with caplog.at_level(logging.INFO, logger="dfastllm.engine"):
        build_engine(EngineConfig(model_path=verifier))
    assert torch.get_num_threads() == 2
    assert "CPU kernels: 2 threads" in caplog.text
