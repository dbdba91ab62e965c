"""Copies whole pages between the device's pools and host memory, and names their layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence as Seq
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.cache.fetch_rule import FetchRule
from engine.cache.host_page import HostPage
from engine.cache.lower_floors import LowerFloors
from engine.models.checkpoint import folder_digest
from engine.models.model_runner import ModelRunner

LAYOUT_VERSION = 1
"""To be raised whenever the bytes of a page get another meaning."""


class CpuPages:
    """Pages of an engine on a CPU: plain copies, of each part one."""

    def __init__(self, runner: ModelRunner) -> None:
        self._planes = [plane.numpy() for plane in runner.page_planes]
        ends = list(accumulate(plane.shape[1] for plane in self._planes))
        self._parts = [slice(*bounds) for bounds in pairwise([0, *ends])]
        self.page_bytes = ends[-1]

    def read(self, page_ids: Seq[int]) -> list[HostPage]:
        return [HostPage(torch.from_numpy(self._read(page_id))) for page_id in page_ids]

    def write(self, page_ids: Seq[int], pages: Seq[HostPage]) -> None:
        for page_id, page in zip(page_ids, pages, strict=True):
            content = page.data.numpy()
            for plane, part in zip(self._planes, self._parts, strict=True):
                plane[page_id] = content[part]

    def _read(self, page_id: int) -> npt.NDArray[np.uint8]:
        content = np.empty(self.page_bytes, np.uint8)
        for plane, part in zip(self._planes, self._parts, strict=True):
            content[part] = plane[page_id]
        return content


class DevicePages:
    """Pages on an accelerator: of each layer one operator for all of them, and no waiting."""

    def __init__(self, runner: ModelRunner) -> None:
        self._planes = runner.page_planes
        self._device = runner.device
        self._sizes = [plane.shape[1] for plane in self._planes]
        self.page_bytes = sum(self._sizes)

    def read(self, page_ids: Seq[int]) -> list[HostPage]:
        """Copy pages out, into pinned memory where there is such."""
        rows = torch.cat([plane[self._chosen(page_ids)] for plane in self._planes], dim=1)
        if self._device.type != "cuda":
            return [HostPage(row) for row in rows.cpu().unbind()]
        pages = [torch.empty(self.page_bytes, dtype=torch.uint8, pin_memory=True) for _ in page_ids]
        for page, row in zip(pages, rows, strict=True):
            page.copy_(row, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        return [HostPage(page, copied) for page in pages]

    def write(self, page_ids: Seq[int], pages: Seq[HostPage]) -> None:
        """Fill pages; forwards that begin later, on the same stream, see the new content."""
        # Only pinned memory is copied without a wait; what comes from outside is not pinned.
        rows = [page.data.to(self._device, non_blocking=True) for page in pages]
        parts = torch.split(torch.stack(rows), self._sizes, dim=1)
        for plane, part in zip(self._planes, parts, strict=True):
            plane.index_copy_(0, self._chosen(page_ids), part)

    def _chosen(self, page_ids: Seq[int]) -> Tensor:
        return torch.tensor(page_ids).to(self._device)


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
    kind = CpuPages if runner.device.type == "cpu" else DevicePages
    return LowerFloors(kind(runner), rule, host_bytes)


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
