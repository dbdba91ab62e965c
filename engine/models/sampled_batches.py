"""What a sampler knows of the sequences that are drawn for together, made once for many steps."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, NamedTuple

import torch

from engine.decoding.logit_processors import needs_processing
from engine.decoding.sampling_table import Entry, SamplingTable
from engine.models.pick import Pick

if TYPE_CHECKING:
    from engine.models.cpu.draws import DrawSettings, KernelDraws

_MAX_BATCHES = 64  # that are remembered; a running one keeps its own for many steps


class SampledBatch(NamedTuple):
    """What is known of some sequences together."""

    entries: list[Entry]  # kept, because the ids by which a batch is found again are theirs
    table: SamplingTable
    settings: DrawSettings | None  # the table once more, where kernels draw
    is_plain: bool  # none has penalties, biases, a minimum length or a grammar


class SampledBatches:
    """Finds a batch again by the sampling settings of its sequences."""

    def __init__(self, device: torch.device, kernels: KernelDraws | None) -> None:
        self._device = device
        self._kernels = kernels
        self._known: dict[tuple[int, ...], SampledBatch] = {}

    def of(self, picks: Seq[Pick]) -> SampledBatch:
        entries = [pick.sequence.sampling for pick in picks]
        key = tuple(map(id, entries))
        known = self._known.get(key)
        if known is None:
            if len(self._known) > _MAX_BATCHES:
                self._known.clear()
            known = self._known[key] = self._make(entries)
        return known

    def _make(self, entries: list[Entry]) -> SampledBatch:
        table = SamplingTable.build(entries, self._device)
        settings = None if self._kernels is None else self._kernels.settings(table)
        is_plain = not any(
            needs_processing(params) or params.grammar is not None for params, _, _ in entries
        )
        return SampledBatch(entries, table, settings, is_plain)
