"""Where one sequence stands in its grammar, and what the grammar allows next."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq

from llguidance import LLMatcher


class GrammarMatcher:
    """Follows the tokens of one output; at rest it stands after exactly those accepted.

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

    @property
    def is_satisfied(self) -> bool:
        """The output so far matches, though more may follow."""
        return not self._matcher.is_error() and self._matcher.is_accepting()

    @property
    def is_complete(self) -> bool:
        """The output matches and nothing but its end can follow."""
        return not self._matcher.is_error() and self._matcher.is_stopped()

    def accept(self, token_id: int) -> bool:
        """Advance by an output token; False, and nothing changes, where the grammar refuses it."""
        if self._matcher.try_consume_tokens([token_id]) == 1:
            self._accepted.append(token_id)
            return True
        self._recover()
        return False

    def legal_prefix(self, draft: Seq[int]) -> list[int]:
        """The draft up to the first token that the grammar refuses."""
        num_legal = self._matcher.validate_tokens(list(draft))
        self._recover()
        return list(draft[:num_legal])

    def masks(self, draft: Seq[int] = ()) -> list[bytes]:
        """What may follow the output + draft[:j], for j = 0, 1, ... as far as the draft is legal.

        A mask has a bit for each token of the vocabulary, the lowest of a byte first, and is a
        multiple of 4 bytes long; one of no bytes refuses nothing. There is none for a row after
        the grammar's completion, where no sequence goes on.
        """
        masks = [self._mask()]
        num_advanced = 0
        for token_id in draft:
            if self._matcher.try_consume_tokens([token_id]) == 0:
                break
            num_advanced += 1
            if self._matcher.is_stopped():
                break
            masks.append(self._mask())
        if num_advanced and not self._matcher.is_error():
            self._matcher.rollback(num_advanced)
        self._recover()
        return masks

    def _mask(self) -> bytes:
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error() or not any(mask):
            return b""
        if not self._hidden:
            return mask
        shown = bytearray(mask)
        for token_id in self._hidden:
            shown[token_id // 8] &= ~(1 << token_id % 8)
        return bytes(shown) if any(shown) else mask

    def _recover(self) -> None:
        if self._matcher.is_error():
            self._matcher = self._make()
            self._matcher.try_consume_tokens(self._accepted)
