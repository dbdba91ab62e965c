"""DEER: a diffusion drafter proposes a block in one pass, the AR verifier keeps its own part of it.

Follows "Draft with Diffusion, Verify with Autoregressive Models" (arXiv 2512.15176).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

from engine.generation.draft_and_verify import DraftAndVerify
from engine.generation.draft_cutter import DraftCutter
from engine.generation.strategy import Rows, RowsOutput, StrategyContext
from engine.request.sequence import Sequence


class Deer(DraftAndVerify):
    """One-pass diffusion draft, AR verify: the tokens of `ar`, several at a time."""

    def __init__(self, context: StrategyContext) -> None:
        super().__init__(context)
        self._cutter: DraftCutter | None = None
        if context.entropy is not None:
            acceptance = self.lengths.acceptance
            self._cutter = DraftCutter(context.entropy, context.sampler, acceptance)
        self._whole: set[str] = set()
        """Drafts that are not to be cut. By the rule of p / q a length that hangs on the drawn
        tokens would show in the output."""

    def propose(self, sequences: Seq[Sequence], drafted: Seq[RowsOutput]) -> list[Rows]:
        if not drafted:
            return self.draft(sequences) or self.verify(sequences, {})
        self.judge.note(drafted)
        return self.verify(sequences, self._drafts(sequences, drafted))

    def plan(self, sequences: Seq[Sequence]) -> Seq[int]:
        lengths = super().plan(sequences)
        if self._cutter is not None:
            self._whole = self.lengths.fixed | {
                seq.sequence_id for seq in sequences if self.judges_by_rejection(seq)
            }
            self._cutter.decide(*self.lengths.latest, self.lengths.verify_cost)
        return lengths

    def draft_rows(self, sequence: Sequence, length: int, revealed: Seq[int | None] = ()) -> Rows:
        """A block of the planned length, or a longer one where it is cut later."""
        if self._cutter is None or not self._cutter.is_looking:
            return super().draft_rows(sequence, length, revealed)
        if sequence.sequence_id not in self._whole:
            length = self.lengths.limit(sequence)
        return super().draft_rows(sequence, length, revealed)._replace(wants_logits=True)

    def accept(self, outputs: Seq[RowsOutput]) -> list[list[int]]:
        committed = super().accept(outputs)
        if self._cutter is not None:
            self._cutter.learn(
                [
                    (output.rows.sequence.sequence_id, len(output.rows.token_ids) - 1, len(own) - 1)
                    for output, own in zip(outputs, committed, strict=True)
                ]
            )
        return committed

    def cut_off(self, sequence: Sequence, num_verified: int) -> list[float]:
        if self._cutter is None:
            return []
        return self._cutter.cut_off(sequence.sequence_id, num_verified)

    def get_stats(self) -> dict[str, Any]:
        own = super().get_stats()
        if self._cutter is None:
            return own
        return own | {f"entropy_{key}": n for key, n in self._cutter.stats.to_dict().items()}

    def reset_stats(self) -> None:
        super().reset_stats()
        if self._cutter is not None:
            self._cutter.stats.reset()

    def _drafts(self, sequences: Seq[Sequence], drafted: Seq[RowsOutput]) -> dict[str, list[int]]:
        if self._cutter is None:
            return {output.rows.sequence.sequence_id: output.token_ids for output in drafted}
        spent_s = self.source.cost(len(drafted))
        return self._cutter.cut(sequences, drafted, self._whole, self.lengths.verify_cost, spent_s)
