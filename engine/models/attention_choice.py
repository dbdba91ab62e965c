"""Which attention an engine runs: by what device, models and packages allow, and by a trial."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import torch

from engine.models.attention import Backend, PagedContext, sdpa_backend
from engine.models.checkpoint import UnsupportedModelError
from engine.models.flash_kernels import FLASH_KINDS, FlashBackend, FlashKind, unmet_demand
from engine.models.kv_pool import KvPool, KvShape, LayerShape
from engine.models.packing import Span, pack

DEFAULT_PAGE_SIZE = 16
NAMES = ("auto", "flash", *FLASH_KINDS, "sdpa")
"""What may be asked for: the best there is, the best flash kernel, or one by name."""


class AttentionUnavailableError(UnsupportedModelError):
    """An attention that was asked for by name and cannot be had; the message says why."""


@dataclass(frozen=True)
class AttentionNeed:
    """What attention will be asked to do; `page_size` None: whatever suits it."""

    device: torch.device
    dtype: torch.dtype
    shapes: list[KvShape]
    page_size: int | None = None


@dataclass(frozen=True)
class AttentionChoice:
    """A backend, the page size it wants, and why each better one was not taken."""

    name: str
    backend: Backend
    page_size: int
    refused: dict[str, str] = field(default_factory=dict)


def choose_attention(
    need: AttentionNeed, name: str = "auto", kinds: dict[str, FlashKind] = FLASH_KINDS
) -> AttentionChoice:
    """Take the best of what `name` allows.

    Raises ValueError for an unknown name, and AttentionUnavailableError where only flash kernels
    are allowed and none can be had.
    """
    if name not in NAMES:
        raise ValueError(f"unknown attention backend {name!r}; known: {', '.join(NAMES)}")
    refused: dict[str, str] = {}
    for flash, kind in kinds.items():
        if name not in ("auto", "flash", flash):
            continue
        found = _page_size(kind, need)
        if isinstance(found, int):
            return AttentionChoice(flash, FlashBackend(kind.kernel), found, refused)
        refused[flash] = found
    if name not in ("auto", "sdpa"):
        reasons = "; ".join(f"{flash} {reason}" for flash, reason in refused.items())
        raise AttentionUnavailableError(f"flash attention cannot be had: {reasons}")
    return AttentionChoice("sdpa", sdpa_backend, need.page_size or DEFAULT_PAGE_SIZE, refused)


def _page_size(kind: FlashKind, need: AttentionNeed) -> int | str:
    """The page size with which the kernel stands its trial, or why there is none."""
    reason = unmet_demand(kind, need.device, need.dtype, need.shapes)
    if reason is not None:
        return reason
    if need.page_size is not None and need.page_size % kind.page_sizes[0]:
        return f"takes pages in multiples of {kind.page_sizes[0]}, not {need.page_size}"
    reasons = []
    for size in kind.page_sizes if need.page_size is None else (need.page_size,):
        failure = failed_trial(kind, need, size)
        if failure is None:
            return size
        reasons.append(f"with pages of {size}: {failure}")
    return "; ".join(reasons)


@torch.inference_mode()
def failed_trial(kind: FlashKind, need: AttentionNeed, page_size: int) -> str | None:
    """Run the kernel on random pages; None where it says what SDPA says, else what went wrong.

    Kernels differ by GPU and version in the page sizes they take, and no table of ours could keep
    up with that. So each is asked, before a request is.
    """
    spans = _trial_spans(page_size)
    causal = [span for span in spans if span.is_causal]
    for layer in {layer for shape in need.shapes for layer in shape.layers}:
        pool = _random_pool(layer, page_size, need)
        for window, chosen in ((None, spans), (page_size // 2 + 1, causal)):
            context = PagedContext(pack(chosen, page_size, need.device), pool, sdpa_backend)
            heads = (len(context.batch.token_ids), 2 * layer.num_kv_heads, layer.key_dim)
            q = torch.randn(heads, device=need.device, dtype=need.dtype)
            expected = sdpa_backend(q, 0, context, 0.125, window)
            try:
                seen = FlashBackend(kind.kernel)(q, 0, context, 0.125, window)
                difference = float((seen - expected).abs().max())  # waits for the device
            # What a kernel of another package may raise is its own business.
            except Exception as error:
                return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            if not difference < 3e-2:
                return f"its output differs from SDPA's by {difference:.1e}"
    return None


def _trial_spans(page_size: int) -> list[Span]:
    """A chunk over two pages, a decode row, a block, and one that sees beyond itself."""
    return list(_spans(page_size, Random(0)))


def _spans(page_size: int, random: Random) -> Iterator[Span]:
    pages = random.sample(range(1, 9), 8)
    cases = [
        (page_size - 3, 7, None),
        (page_size + 2, 1, None),
        (page_size - 4, 6, page_size + 2),
        (2, 5, page_size + 5),
    ]
    for index, (start, count, visible_end) in enumerate(cases):
        yield Span([0] * count, start, pages[2 * index : 2 * index + 2], visible_end)


def _random_pool(layer: LayerShape, page_size: int, need: AttentionNeed) -> KvPool:
    shape = KvShape(1, layer.num_kv_heads, layer.key_dim)
    pool = KvPool(shape, 9, page_size, need.dtype, need.device)
    pool.keys(0).normal_()
    pool.values(0).normal_()
    return pool
