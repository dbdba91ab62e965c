"""Forwards through torch.compile: one graph for any number of rows, attention left out of it.

Attention reads page tables whose shapes change with every step, so the graph sees it as one opaque
operator that finds its context under a number. What is between two attentions is compiled once,
for a size that is a symbol: nothing is compiled while the engine serves. On CUDA it runs as CUDA
graphs, one for each bucket of rows; that part has not been run yet.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from bisect import bisect_left
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from engine.models.checkpoint import UnsupportedModelError
from engine.models.packing import Span

CUDA_BUCKETS = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Rows of a CUDA graph; a batch of more rows is bound by its products and runs eagerly."""


_BACKEND = "inductor"


class CompilerMissingError(UnsupportedModelError):
    """Compilation was asked for where the compiler that it needs is not installed."""


def check_compiler(device: torch.device) -> None:
    """Raise CompilerMissingError naming what torch.compile lacks on this machine."""
    if device.type == "cuda" and find_spec("triton") is None:
        raise CompilerMissingError("compile is on, but the package triton is not installed")
    if _BACKEND != "inductor":
        return  # nothing else writes C++
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise CompilerMissingError(
            f"compile is on, but there is no C++ compiler: {compiler} is not on the PATH"
        )
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise CompilerMissingError(
            "compile is on, but Python's headers are missing (Python.h; Debian's python3-dev)"
        )


def compile_forward(forward: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """One graph that leaves sizes open, without breaks; CUDA graphs where there is CUDA."""
    mode = "reduce-overhead" if device.type == "cuda" else None
    compiled: Callable[..., Any] = torch.compile(
        forward, dynamic=True, fullgraph=True, mode=mode, backend=_BACKEND
    )
    return compiled


def num_padded_rows(num_rows: int, device: torch.device) -> int | None:
    """How many rows a compiled forward of so many runs; None: it is to run eagerly.

    On a CPU as many: a single row has a graph of its own, as a symbol begins at two.
    """
    if device.type != "cuda":
        return num_rows
    index = bisect_left(CUDA_BUCKETS, num_rows)
    return CUDA_BUCKETS[index] if index < len(CUDA_BUCKETS) else None


def num_padded_logits(num_logits: int, num_rows: int, device: torch.device) -> int:
    """How many rows get logits in a forward of `num_rows`; on CUDA all, for one graph a bucket."""
    if device.type == "cuda":
        return num_rows
    return max(num_logits, min(num_rows, 2))


def pad_spans(spans: Seq[Span], num_rows: int) -> list[Span]:
    """Fill up with single rows on the scratch page, which nobody reads, up to `num_rows` rows."""
    missing = num_rows - sum(len(span.token_ids) for span in spans)
    return [*spans, *[Span([0], 0, [0])] * missing]


def pad_logit_rows(rows: Tensor, num_rows: int) -> Tensor:
    """Repeat row 0 up to `num_rows`, whose logits the caller drops."""
    missing = num_rows - len(rows)
    return rows if missing <= 0 else torch.cat((rows, rows.new_zeros(missing)))


_contexts: dict[int, Any] = {}
"""By a compiled model's number, what its forward in progress needs for attention."""


@dataclass(frozen=True)
class OpaqueContext:
    """Stands in a graph for the `PagedContext` of whichever forward is running."""

    number: int

    def set(self, context: Any) -> None:
        _contexts[self.number] = context

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: int,
        scale: float,
        window: int | None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """What `PagedContext.attend` does, as one operator: [T, Hq, D] -> [T, Hq, D]"""
        out: Tensor = _attend(q, k, v, sinks, self.number, layer, scale, window, softcap)
        return out

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The drafter's attention over its blocks: [N, Hq, D] -> [N, Hq, D]"""
        out: Tensor = _attend_blocks(q, k, v, self.number, layer)
        return out


def new_context() -> OpaqueContext:
    """A number that no other model of this process has."""
    _contexts[number := len(_contexts)] = None
    return OpaqueContext(number)


# Captured in a CUDA graph, attention would go on reading the page tables of the capture.
_NOT_IN_CUDA_GRAPHS = (torch._C.Tag.cudagraph_unsafe,)


@torch.library.custom_op("dfastllm::paged_attention", mutates_args=(), tags=_NOT_IN_CUDA_GRAPHS)
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    number: int,
    layer: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    out: Tensor = _contexts[number].attend(q, k, v, layer, scale, window, softcap, sinks)
    return out.contiguous()


@torch.library.custom_op("dfastllm::block_attention", mutates_args=(), tags=_NOT_IN_CUDA_GRAPHS)
def _attend_blocks(q: Tensor, k: Tensor, v: Tensor, number: int, layer: int) -> Tensor:
    out: Tensor = _contexts[number](layer, q, k, v)
    return out.contiguous()


@_attend.register_fake
@_attend_blocks.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return q.new_empty(*q.shape[:2], v.shape[-1])


class CompiledDrafter:
    """A drafter's forward as one graph over the rows of all blocks."""

    def __init__(self, drafter: Callable[..., Tensor], device: torch.device) -> None:
        self._context = new_context()
        self._forward = compile_forward(drafter, device)

    def __call__(self, embeds: Tensor, positions: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """As the drafter itself: [N, H] at positions [N] -> [N, H]"""
        self._context.set(attend)
        hidden: Tensor = self._forward(embeds, positions, self._context)
        return hidden


def num_graphs() -> int:
    """Graphs that this process has compiled; does not grow while an engine serves."""
    return int(counters["stats"]["unique_graphs"])
