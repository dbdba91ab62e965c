"""A row's logits are the same bits in any company: the lossless promise, kept by construction.

A verifier that rounds otherwise in a batch, in a span of drafts, or on more threads could prefer
another token there, and drafting would change what is written. Here every output is one chain of
additions whose order hangs on its own row alone. So these tests know no tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.models.model_runner import ModelRunner
from tests.engine.kernel_models import (
    STORED_AND_MULTIPLIED,
    Plan,
    load_runner,
    make_texts,
    read,
    save_draft_kind,
    save_kind,
)

pytestmark = pytest.mark.usefixtures("all_helpers")

LENGTHS = [90, 41, 77]
PLANS: dict[str, Plan] = {
    "one row at a time": [
        [(text, 1)] for text, length in enumerate(LENGTHS) for _ in range(length)
    ],
    "all at once": [list(enumerate(LENGTHS))],
    "chunks of 17": [
        [(text, min(17, length - start))]
        for text, length in enumerate(LENGTHS)
        for start in range(0, length, 17)
    ],
    "spans of 8 to verify": [
        [(0, 50), (1, 1), (2, 45)],
        *[[(0, 8), (1, 8), (2, 8)]] * 4,
        [(0, 8), (1, 8)],
    ],
    "prompts beside decode rows": [
        [(1, 12)],
        *[[(1, 1), (0, 6)]] * 15,
        *[[(2, 7), (1, 1)]] * 11,
        [(1, 3)],
    ],
}
KINDS = ["qwen3", "qwen2", "mistral", "llama3"]


Loader = Callable[..., ModelRunner]


@pytest.fixture(scope="module", params=STORED_AND_MULTIPLIED, ids=str)
def dtypes(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


@pytest.fixture(scope="module", params=KINDS)
def load(
    request: pytest.FixtureRequest,
    dtypes: tuple[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Loader:
    stored, dtype = dtypes
    folder = save_kind(tmp_path_factory.mktemp("model"), request.param, stored)
    return partial(load_runner, folder, dtype=dtype)


@pytest.fixture(scope="module")
def alone(load: Loader) -> list[Tensor]:
    """Each text by itself, in one forward, on one thread."""
    plan = [[(text, length)] for text, length in enumerate(LENGTHS)]
    return read(load(num_threads=1), make_texts(LENGTHS), plan)


def same_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    for logits, one in zip(found, expected, strict=True):
        assert logits.isfinite().all()
        assert torch.equal(logits.view(torch.int32), one.view(torch.int32))


@pytest.mark.parametrize("name", PLANS)
def test_company_and_chunks_change_no_bit(load: Loader, alone: list[Tensor], name: str) -> None:
    same_bits(read(load(num_threads=1), make_texts(LENGTHS), PLANS[name]), alone)


@pytest.mark.parametrize("num_threads", [2, 3])
def test_threads_change_no_bit(load: Loader, alone: list[Tensor], num_threads: int) -> None:
    runner = load(num_threads=num_threads)
    for name in ("all at once", "spans of 8 to verify"):
        same_bits(read(runner, make_texts(LENGTHS), PLANS[name]), alone)


def test_other_pages_change_no_bit(load: Loader, alone: list[Tensor]) -> None:
    runner = load(num_threads=1, page_size=32)
    texts = make_texts(LENGTHS, page_size=32)
    same_bits(read(runner, texts, PLANS["spans of 8 to verify"]), alone)


def test_a_drafter_beside_the_verifier_changes_no_bit(
    dtypes: tuple[str, str], tmp_path: Path
) -> None:
    stored, dtype = dtypes
    path = save_kind(tmp_path / "verifier", "qwen3", stored)
    drafter = save_draft_kind(tmp_path / "drafter", stored)
    plan, texts = PLANS["spans of 8 to verify"], make_texts(LENGTHS)
    without = read(load_runner(path, num_threads=1, dtype=dtype), texts, plan)
    beside = load_runner(path, drafter, num_threads=2, dtype=dtype)
    same_bits(read(beside, texts, plan), without)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_draft_is_the_same_bits_in_any_company(
    dtypes: tuple[str, str], tmp_path: Path, num_threads: int
) -> None:
    stored, dtype = dtypes
    path = save_kind(tmp_path / "verifier", "qwen3", stored)
    drafter, texts = save_draft_kind(tmp_path / "drafter", stored), make_texts(LENGTHS)
    runner = load_runner(path, drafter, num_threads=num_threads, dtype=dtype)
    read(runner, texts, PLANS["all at once"])
    blocks = [
        text.span(length - 20, length - 12) for text, length in zip(texts, LENGTHS, strict=True)
    ]
    together = runner.draft(blocks, [7, 3, 7]).split([7, 3, 7])
    one = load_runner(path, drafter, num_threads=1, dtype=dtype)
    read(one, texts, PLANS["chunks of 17"])
    same_bits(list(together), [one.draft([b], [n]) for b, n in zip(blocks, (7, 3, 7), strict=True)])
