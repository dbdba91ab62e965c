"""In which order the tokens of several drafts are drawn, where each hangs on the one before it."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class ChainOrder:
    """The first tokens of all drafts, then the second ones, and so on.

    The longest drafts stand first, so that those which go on are always the leading ones.
    """

    drafts: list[int]
    widths: list[int]
    """Of each draw how many drafts it is for."""
    rows: list[int]
    """Rows of logits in the order of the draws; before, each draft's are side by side."""

    @classmethod
    def of(cls, lengths: Seq[int]) -> ChainOrder:
        drafts = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        widths = [sum(length > place for length in lengths) for place in range(max(lengths))]
        starts = list(accumulate(lengths, initial=0))
        rows = [starts[i] + place for place, width in enumerate(widths) for i in drafts[:width]]
        return cls(drafts, widths, rows)

    def by_draft(self, token_ids: Seq[int]) -> list[list[int]]:
        """What was drawn, in the order of the draws -> the tokens of each draft."""
        tokens: list[list[int]] = [[] for _ in self.drafts]
        drawn = iter(token_ids)
        for width in self.widths:
            for draft in self.drafts[:width]:
                tokens[draft].append(next(drawn))
        return tokens
