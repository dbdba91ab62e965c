"""Tokens that are denoised together, while they are under way."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass


@dataclass
class MaskedBlock:
    """Tokens at positions start, start + 1, ...: some known, the others masks (None)."""

    start: int
    token_ids: list[int | None]
    num_forwards: int = 0  # that asked for logits: the number of the next denoising step

    @classmethod
    def of(cls, start: int, known: Seq[int], num_masks: int) -> MaskedBlock:
        return cls(start, [*known, *[None] * num_masks])

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)

    @property
    def masks(self) -> list[int]:
        """Their places, counted from the start of the block."""
        return [place for place, token_id in enumerate(self.token_ids) if token_id is None]

    @property
    def asked(self) -> range:
        """The places from the first mask to the last."""
        masks = self.masks
        return range(masks[0], masks[-1] + 1)

    @property
    def is_finished(self) -> bool:
        return None not in self.token_ids

    def filled(self, mask_token_id: int) -> list[int]:
        """The tokens as the model reads them."""
        return [mask_token_id if token_id is None else token_id for token_id in self.token_ids]

    def prefix(self, first: int = 0, end: int | None = None) -> list[int]:
        """The tokens from one place on, up to the first mask."""
        known: list[int] = []
        for token_id in self.token_ids[first:end]:
            if token_id is None:
                break
            known.append(token_id)
        return known
