"""How much of each sequence a model has read into pages that the sequence still holds."""

from __future__ import annotations

from typing import NamedTuple

from engine.request.sequence import Sequence


class _Read(NamedTuple):
    num_preemptions: int  # pages that were given up since have taken what was read with them
    num_tokens: int


class ReadProgress:
    """Remembers leading tokens by sequence, and knows that a pre-emption takes them all."""

    def __init__(self) -> None:
        self._read: dict[str, _Read] = {}

    def __len__(self) -> int:
        """Sequences that are remembered."""
        return len(self._read)

    def num_read(self, sequence: Sequence) -> int:
        known = self._read.get(sequence.sequence_id)
        if known is None or known.num_preemptions != sequence.num_preemptions:
            return 0
        return known.num_tokens

    def note(self, sequence: Sequence, num_tokens: int) -> None:
        """So many leading tokens will have been read when the step is over."""
        self._read[sequence.sequence_id] = _Read(sequence.num_preemptions, num_tokens)

    def forget(self, sequence: Sequence) -> None:
        self._read.pop(sequence.sequence_id, None)
