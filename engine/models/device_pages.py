"""Copies whole pages between the device's pools and host memory, and names their layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence as Seq
from pathlib import Path

import torch

from engine.cache.fetch_rule import FetchRule
from engine.cache.host_page import HostPage
from engine.cache.lower_floors import LowerFloors
from engine.models.checkpoint import folder_digest
from engine.models.model_runner import ModelRunner

LAYOUT_VERSION = 1
"""To be raised whenever the bytes of a page get another meaning."""


class DevicePages:
    """What every page always holds: the verifier's keys and values, and the drafter's context."""

    def __init__(self, runner: ModelRunner) -> None:
        self._planes = runner.page_planes
        self._device = runner.device
        self._sizes = [plane.shape[1] for plane in self._planes]
        self.page_bytes = sum(self._sizes)

    def read(self, page_ids: Seq[int]) -> list[HostPage]:
        """Copy pages out; from an accelerator without a wait, into pinned memory."""
        chosen = torch.tensor(page_ids).to(self._device)
        rows = torch.cat([plane[chosen] for plane in self._planes], dim=1)
        if self._device.type != "cuda":
            return [HostPage(row) for row in rows.unbind()]
        pages = [torch.empty(self.page_bytes, dtype=torch.uint8, pin_memory=True) for _ in page_ids]
        for page, row in zip(pages, rows, strict=True):
            page.copy_(row, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        return [HostPage(page, copied) for page in pages]

    def write(self, page_ids: Seq[int], pages: Seq[HostPage]) -> None:
        """Fill pages; forwards that begin later, on the same stream, see the new content."""
        chosen = torch.tensor(page_ids).to(self._device)
        # Only pinned memory is copied without a wait; what comes from outside is not pinned.
        rows = [page.data.to(self._device, non_blocking=True) for page in pages]
        parts = torch.split(torch.stack(rows), self._sizes, dim=1)
        for plane, part in zip(self._planes, parts, strict=True):
            plane.index_copy_(0, chosen, part)


def lower_floors(
    runner: ModelRunner, verify_costs: Seq[tuple[int, float]], host_bytes: int
) -> LowerFloors | None:
    """Host memory, and room for a store, under a runner's pages; None where none can be shared.

    `verify_costs` are (rows, seconds) of forwards: the first guess at what computing a page takes.
    """
    if not runner.has_verifier:
        return None
    num_rows, seconds = verify_costs[-1]
    rule = FetchRule(runner.page_size, seconds / num_rows)
    return LowerFloors(DevicePages(runner), rule, host_bytes)


def page_tag(runner: ModelRunner, folders: Seq[str], numerics: Seq[object]) -> bytes:
    """Names what a page's bytes are a function of, beside its tokens: equal tags, equal bytes.

    `folders` hold the weights of verifier and drafter (shape and dtype follow from them and from
    `numerics`: whatever else decides how they are computed).
    """
    digest = hashlib.blake2b(digest_size=16)
    for folder in folders:
        digest.update(folder_digest(Path(folder)))
    sizes = [plane.shape[1] for plane in runner.page_planes]
    layout = [LAYOUT_VERSION, runner.page_size, runner.uses_kernels, runner.device.type, sizes]
    digest.update(json.dumps([*layout, *map(str, numerics)]).encode())
    return digest.digest()
