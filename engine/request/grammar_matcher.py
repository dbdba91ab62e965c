"""Where one sequence stands in its grammar, and what the grammar allows next."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq

from llguidance import LLMatcher


class GrammarMatcher:
    """Follows the tokens of one output; at rest it stands after exactly those accepted.

    It may be led along a draft (`try_advance`), and stands after it until it is told to `rewind`.

    llguidance's matcher never raises: over its limits (a grammar made to be slow) it enters a
    state of error for good. It is then made anew, and the row in question has no mask: `accept`
    still refuses what does not match.
    """

    def __init__(self, make: Callable[[], LLMatcher], hidden: Iterable[int] = ()) -> None:
        """`make` gives a matcher at its start. `hidden` tokens are only allowed where no other is.

        A sequence that ignores its end hides the tokens that mean it: they are what is left when
        the grammar is complete.
        """
        self._make = make
        self._matcher = make()
        self._hidden = tuple(hidden)
        self._accepted: list[int] = []
        self._num_ahead = 0

    @property
    def is_satisfied(self) -> bool:
        """The tokens so far match, though more may follow."""
        return not self._matcher.is_error() and self._matcher.is_accepting()

    @property
    def is_complete(self) -> bool:
        """The tokens match and nothing but their end can follow."""
        return not self._matcher.is_error() and self._matcher.is_stopped()

    def accept(self, token_id: int) -> bool:
        """Advance by an output token; False, and nothing changes, where the grammar refuses it."""
        assert self._num_ahead == 0, "output is accepted at rest"
        if self._matcher.try_consume_tokens([token_id]) == 1:
            self._accepted.append(token_id)
            return True
        self.rewind()
        return False

    def try_advance(self, token_id: int) -> bool:
        """Advance by a drafted token; False, and nothing changes, where the grammar refuses it."""
        if self._matcher.try_consume_tokens([token_id]) == 0:
            return False
        self._num_ahead += 1
        return True

    def rewind(self) -> None:
        """Return to the end of the output."""
        if self._matcher.is_error():
            self._matcher = self._make()
            self._matcher.try_consume_tokens(self._accepted)
        elif self._num_ahead:
            self._matcher.rollback(self._num_ahead)
        self._num_ahead = 0

    def mask(self) -> bytes:
        """What may follow: a bit for each token of the vocabulary, the lowest of a byte first.

        Its length is a multiple of 4; a mask of no bytes refuses nothing.
        """
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error() or not any(mask):
            return b""
        if not self._hidden:
            return mask
        shown = bytearray(mask)
        for token_id in self._hidden:
            shown[token_id // 8] &= ~(1 << token_id % 8)
        return bytes(shown) if any(shown) else mask

    def masks(self, draft: Seq[int] = ()) -> list[bytes]:
        """The masks after output + draft[:j], for j = 0, 1, ... as far as the draft is legal.

        There is none after the grammar's completion, where no sequence goes on.
        """
        masks = [self.mask()]
        for token_id in draft:
            if not self.try_advance(token_id) or self._matcher.is_stopped():
                break
            masks.append(self.mask())
        self.rewind()
        return masks

    def legal_prefix(self, draft: Seq[int]) -> list[int]:
        """The draft up to the first token that the grammar refuses."""
        num_legal = self._matcher.validate_tokens(list(draft))
        self.rewind()
        return list(draft[:num_legal])
