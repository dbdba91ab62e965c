"""The masks of many sequences laid end to end, as the rules of `decoding` want them."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.generation.strategy import RowsOutput


class MaskRows(NamedTuple):
    """What a forward gave for the masks that are left, and how many of them each sequence has."""

    logits: Tensor  # [N, V]
    token_ids: Tensor  # [N], on the logits' device
    lengths: list[int]

    @classmethod
    def of(cls, outputs: Seq[RowsOutput], masks: Seq[Seq[int]]) -> MaskRows:
        """`masks` says which rows with logits of each output are masks: those between are known."""
        pairs = list(zip(outputs, masks, strict=True))
        logits = torch.cat([output.logits[own] for output, own in pairs])
        drawn = [output.token_ids[row] for output, own in pairs for row in own]
        token_ids = torch.tensor(drawn, dtype=torch.int64).to(logits.device)
        return cls(logits, token_ids, [len(own) for own in masks])

    def split(self, values: Tensor) -> list[list[Any]]:
        """[N] -> on the host, the values of each sequence."""
        return [own.tolist() for own in torch.split(values.cpu(), self.lengths)]
