"""Where one sequence stands in its grammar, and what the grammar allows next."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from typing import Protocol, TypeVar

from llguidance import LLMatcher

T = TypeVar("T")


class CompiledGrammar(Protocol):
    """What makes matchers of one grammar."""

    def start(self) -> LLMatcher:
        """A matcher at its start, which shares what it learns with those made before it."""
        ...

    def start_anew(self) -> LLMatcher:
        """A matcher at its start that shares nothing with those made before it."""
        ...


class GrammarMatcher:
    """Follows the tokens of one output; at rest it stands after exactly those accepted.

    It may be led along a draft (`try_advance`), and stands after it until it is told to `rewind`.

    llguidance's matcher never raises: over its limits it enters a state of error for good. The
    matchers of a grammar fill one memory, so the fault may be all of theirs, and a new one is
    asked again. If that fails too, the fault is the grammar's, and the tokens that led there are a
    dead end, with a draft and without one: nothing is accepted after them.
    """

    def __init__(self, compiled: CompiledGrammar, hidden: Iterable[int] = ()) -> None:
        """`hidden` tokens are only allowed where no other is.

        A sequence that ignores its end hides the tokens that mean it: they are what is left when
        the grammar is complete.
        """
        self._compiled = compiled
        self._matcher = compiled.start()
        self._hidden = tuple(hidden)
        self._accepted: list[int] = []
        self._ahead: list[int] = []
        self._dead_end: list[int] | None = None

    @property
    def is_satisfied(self) -> bool:
        """The tokens so far match, though more may follow."""
        return self._matcher.is_accepting()

    @property
    def is_complete(self) -> bool:
        """The tokens match and nothing but their end can follow."""
        return not self._matcher.is_error() and self._matcher.is_stopped()

    def accept(self, token_id: int) -> bool:
        """Advance by an output token; False, and nothing changes, where the grammar refuses it."""
        assert not self._ahead, "output is accepted at rest"
        if self._dead_end == self._accepted or not self._consume(token_id):
            self.rewind()
            return False
        self._accepted.append(token_id)
        return True

    def try_advance(self, token_id: int) -> bool:
        """Advance by a drafted token; False, and nothing changes, where the grammar refuses it."""
        if not self._consume(token_id):
            return False
        self._ahead.append(token_id)
        return True

    def rewind(self) -> None:
        """Return to the end of the output."""
        ahead, self._ahead = self._ahead, []
        if self._matcher.is_error():
            self._renew()
        elif ahead:
            self._matcher.rollback(len(ahead))

    def mask(self) -> bytes:
        """What may follow: a bit for each token of the vocabulary, the lowest of a byte first.

        Its length is a multiple of 4. At a dead end it has no bytes, and refuses nothing.
        """
        here = self._accepted + self._ahead
        if self._dead_end == here:
            return b""
        mask = self._ask(LLMatcher.compute_bitmask)
        if self._matcher.is_error():
            self._dead_end = here
        if self._matcher.is_error() or not any(mask):
            return b""
        return self._without_hidden(mask) if self._hidden else mask

    def masks(self, draft: Seq[int] = ()) -> list[bytes]:
        """The masks after output + draft[:j], for j = 0, 1, ... as far as the draft is legal.

        There is none after the grammar's completion, where no sequence goes on.
        """
        masks = [self.mask()]
        for token_id in draft:
            if not masks[-1] or not self.try_advance(token_id) or self.is_complete:
                break
            masks.append(self.mask())
        self.rewind()
        return masks

    def legal_prefix(self, draft: Seq[int]) -> list[int]:
        """The draft up to the first token that the grammar refuses."""
        num_legal = self._ask(lambda matcher: matcher.validate_tokens(list(draft)))
        self.rewind()
        return list(draft[:num_legal])

    def _consume(self, token_id: int) -> bool:
        return self._ask(lambda matcher: matcher.try_consume_tokens([token_id])) == 1

    def _ask(self, question: Callable[[LLMatcher], T]) -> T:
        answer = question(self._matcher)
        if self._matcher.is_error():
            self._renew()
            answer = question(self._matcher)
        return answer

    def _renew(self) -> None:
        self._matcher = self._compiled.start_anew()
        self._matcher.try_consume_tokens(self._accepted + self._ahead)

    def _without_hidden(self, mask: bytes) -> bytes:
        shown = bytearray(mask)
        for token_id in self._hidden:
            shown[token_id // 8] &= ~(1 << token_id % 8)
        return bytes(shown) if any(shown) else mask
