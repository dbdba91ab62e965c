"""A draft on its way through several denoising steps, and what is revealed of it in each."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.decoding.diffusion_sampler import DiffusionSampler
from engine.generation.mask_rows import MaskRows
from engine.generation.strategy import RowsOutput


@dataclass
class PartialDraft:
    """What each mask became in the last step that had it masked, and whether it stays that."""

    token_ids: list[int]
    confidences: list[float]
    is_masked: list[bool]
    masked_after: list[list[bool]] = field(default_factory=list)
    """`is_masked` after each step."""

    @classmethod
    def of(cls, length: int) -> PartialDraft:
        return cls([0] * length, [0.0] * length, [True] * length)

    @property
    def num_steps(self) -> int:
        return len(self.masked_after)

    @property
    def is_finished(self) -> bool:
        return not any(self.is_masked)

    @property
    def revealed(self) -> list[int | None]:
        """The tokens that later steps read; None where they read a mask."""
        pairs = zip(self.token_ids, self.is_masked, strict=True)
        return [None if is_masked else token_id for token_id, is_masked in pairs]


class Denoised(NamedTuple):
    """A draft, and what a step has just given for its positions."""

    draft: PartialDraft
    output: RowsOutput


def reveal(rule: DiffusionSampler, denoised: Seq[Denoised]) -> None:
    """Take what a step gave for the masks of these drafts; those that the rule chooses stay.

    The leftmost mask always becomes its token: where that is wrong, nothing after it matters.
    """
    masks = [[i for i, m in enumerate(draft.is_masked) if m] for draft, _ in denoised]
    rows = MaskRows.of([one.output for one in denoised], masks)
    steps = [draft.num_steps for draft, _ in denoised]
    revealed = rows.split(rule(rows.logits, rows.token_ids, rows.lengths, steps))
    confidences = rows.split(DiffusionSampler().confidence(rows.logits, rows.token_ids))
    drawn = rows.split(rows.token_ids)
    for (draft, _), own, *columns in zip(
        denoised, masks, drawn, confidences, revealed, strict=True
    ):
        for position, token_id, confidence, is_revealed in zip(own, *columns, strict=True):
            draft.token_ids[position] = token_id
            draft.confidences[position] = confidence
            draft.is_masked[position] = not is_revealed
        draft.is_masked[own[0]] = False
        draft.masked_after.append(list(draft.is_masked))
