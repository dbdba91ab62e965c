"""What the sampler must know of some rows of logits: whose they are, and what they follow."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

from engine.request.sequence import Sequence


class Pick(NamedTuple):
    """Consecutive logit rows of one sequence.

    `first_position` is the output position that the first row draws for; `draft` holds the tokens
    that rows 1, 2, ... take as given before their own. Rows of a drafter are drawn all at once,
    each from the prefix that is there.
    """

    sequence: Sequence
    first_position: int
    num_rows: int
    draft: Seq[int] = ()
    is_drafter: bool = False
    denoising_step: int = 0
    temperature: float = 1.0
    """The way of generating's own, by which logits are divided before the request's."""
    num_written: int | None = None

    @property
    def num_written_tokens(self) -> int:
        """How many of the output's tokens penalties know of."""
        return self.sequence.num_output_tokens if self.num_written is None else self.num_written

    @property
    def output_token_ids(self) -> list[int]:
        """What penalties know of the output."""
        return self.sequence.output_token_ids[: self.num_written]
