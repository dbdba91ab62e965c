"""Flash attention: its arguments say what SDPA computes, and a choice says what it refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.build import EngineConfig, build_engine
from engine.models import attention_choice
from engine.models.attention import PagedContext, sdpa_backend
from engine.models.attention_choice import (
    AttentionNeed,
    AttentionUnavailableError,
    choose_attention,
)
from engine.models.flash_kernels import FLASH_KINDS, FlashBackend, FlashKind, unmet_demand
from engine.models.kv_pool import KvPool, KvShape
from engine.models.packing import Span, pack
from engine.models.varlen import VarlenPart, varlen_parts
from tests.engine.replayed_kernel import replayed_kernel

CPU = torch.device("cpu")
SHAPE = KvShape(num_layers=2, num_kv_heads=2, head_dim=8)
NEED = AttentionNeed(CPU, torch.float32, [SHAPE])

CAUSAL = [Span([0] * 9, 0, [3, 1, 4]), Span([0], 11, [5, 9, 2]), Span([0] * 3, 6, [6, 8, 7])]
BLOCKS = [Span([0] * 4, 5, [3, 1, 4], 9), Span([0] * 4, 0, [5, 9], 4)]
CANVASES = [Span([0] * 3, 2, [3, 1, 4], 11), Span([0] * 5, 0, [6, 8, 7], 12)]
BATCHES = {
    "causal": CAUSAL,
    "blocks": BLOCKS,
    "mixed": [BLOCKS[0], CAUSAL[1], Span([0] * 2, 3, [6, 8], 5), CAUSAL[2]],
    "canvases": [*CANVASES, Span([0] * 2, 4, [2, 10, 11], 9), Span([0], 7, [5, 9])],
}


@pytest.mark.parametrize("window", [None, 1, 3, 6, 100])
@pytest.mark.parametrize("name", BATCHES)
def test_a_kernel_that_follows_its_arguments_gives_what_sdpa_gives(
    name: str, window: int | None
) -> None:
    torch.manual_seed(0)
    pool = KvPool(SHAPE, 12, 4, torch.float32, CPU)
    pool.keys(1).normal_()
    pool.values(1).normal_()
    context = PagedContext(pack(BATCHES[name], 4, CPU), pool, sdpa_backend)
    q = torch.randn(len(context.batch.token_ids), 4, SHAPE.head_dim)
    expected = sdpa_backend(q, 1, context, 0.3, window)
    seen = FlashBackend(replayed_kernel)(q, 1, context, 0.3, window)
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)


def test_without_a_window_all_blocks_go_in_one_call() -> None:
    batch = pack([*CANVASES, *BLOCKS, *CAUSAL], 4, CPU)
    parts = varlen_parts(batch)
    assert [(part.is_causal, len(part.seqused_k)) for part in parts] == [(False, 4), (True, 3)]


def test_page_tables_are_padded_with_the_scratch_page() -> None:
    (part,) = varlen_parts(pack(CAUSAL, 4, CPU))
    assert part.block_table.tolist() == [[3, 1, 4], [5, 9, 2], [6, 8, 7]]
    (short, _) = varlen_parts(pack([Span([0], 0, [7, 8]), *BLOCKS], 4, CPU))
    assert short.block_table.tolist() == [[7]]
    assert short.block_table.dtype == torch.int32


@pytest.mark.parametrize("name", ["auto", "sdpa"])
def test_a_cpu_takes_sdpa_and_small_pages(name: str) -> None:
    choice = choose_attention(NEED, name)
    assert (choice.name, choice.page_size) == ("sdpa", 16)
    assert all("needs a CUDA device, this is cpu" in r for r in choice.refused.values())
    assert set(choice.refused) == (set(FLASH_KINDS) if name == "auto" else set())


@pytest.mark.parametrize("name", ["flash", "flash2", "flash3", "varlen"])
def test_flash_attention_that_cannot_be_had_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(AttentionUnavailableError, match="needs a CUDA device, this is cpu"):
        choose_attention(NEED, name)


def test_an_unknown_attention_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'flsh'; known: auto, flash, flash3, varlen, flash2"):
        choose_attention(NEED, "flsh")


GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "capability", "reason"),
    [
        (torch.float32, 64, 9, "needs bfloat16 or float16, this is float32"),
        (torch.float16, 512, 9, "these are 512"),
        (torch.float16, 60, 9, "multiples of 8, these are 60"),
        (torch.bfloat16, 64, 8, "compute capability 9, not 8.0"),
        (torch.bfloat16, 64, 9, None),
    ],
)
def test_each_thing_that_a_kernel_asks_for_is_named(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    head_dim: int,
    capability: int,
    reason: str | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (capability, 0))
    kind = FlashKind(replayed_kernel, (16,), "torch", compute_capability=9)
    seen = unmet_demand(kind, GPU, dtype, [KvShape(1, 2, head_dim)])
    assert seen is None if reason is None else reason in str(seen)


def test_a_missing_package_is_named() -> None:
    kind = FlashKind(replayed_kernel, (16,), "no_such_flash")
    assert unmet_demand(kind, GPU, torch.float16, [SHAPE]) == (
        "the package no_such_flash is not installed"
    )


@pytest.fixture
def any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a kernel of ours stand for one that only a GPU has."""
    monkeypatch.setattr(attention_choice, "unmet_demand", lambda *_: None)


def only_pages_of(size: int) -> Callable[..., Tensor]:
    def kernel(
        q: Tensor, keys: Tensor, values: Tensor, part: VarlenPart, scale: float, window: Any
    ) -> Tensor:
        if keys.shape[1] % size:
            raise RuntimeError(f"Paged KV cache block size must be divisible by {size}\nC++ frame")
        return replayed_kernel(q, keys, values, part, scale, window)

    return kernel


@pytest.mark.usefixtures("any_device")
def test_the_page_size_is_the_smallest_that_the_kernel_takes() -> None:
    kinds = {"varlen": FlashKind(only_pages_of(32), (16, 32))}
    choice = choose_attention(NEED, kinds=kinds)
    assert (choice.name, choice.page_size, choice.refused) == ("varlen", 32, {})
    assert choose_attention(replace(NEED, page_size=64), kinds=kinds).page_size == 64


@pytest.mark.usefixtures("any_device")
def test_a_kernel_that_fails_its_trial_is_passed_over_and_the_reason_kept() -> None:
    def ignores_the_window(q: Tensor, *args: Any) -> Tensor:
        return replayed_kernel(q, *args[:-1], (-1, args[-1][1]))

    kinds = {
        "flash3": FlashKind(only_pages_of(32), (16,)),
        "varlen": FlashKind(ignores_the_window, (16,)),
        "flash2": FlashKind(replayed_kernel, (32,)),
    }
    choice = choose_attention(NEED, kinds=kinds)
    assert choice.name == "flash2"
    assert choice.refused["flash3"] == (
        "with pages of 16: RuntimeError: Paged KV cache block size must be divisible by 32"
    )
    assert "its output differs from SDPA's by" in choice.refused["varlen"]
    odd = choose_attention(replace(NEED, page_size=24), kinds=kinds)
    assert odd.name == "sdpa"
    assert odd.refused["flash2"] == "takes pages in multiples of 32, not 24"


def test_an_engine_that_must_have_flash_attention_does_not_start_without() -> None:
    with pytest.raises(AttentionUnavailableError, match="flash2 needs a CUDA device"):
        build_engine(EngineConfig(attention="flash", device="cpu"))
