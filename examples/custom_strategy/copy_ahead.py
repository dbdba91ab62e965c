"""A way of generating from another package: it drafts by copying from the text itself.

What followed the last two tokens earlier in the text is proposed again. `output.token_ids` were
drawn with the request's own noise, so a strategy that verifies this way is lossless.
"""

from engine.decoding.verification import count_accepted_prefix
from engine.generation.strategy import GenerationStrategy, ModelRole, Rows

LONGEST = 4


class CopyAhead(GenerationStrategy):
    """Drafts from the text itself; the verifier keeps what it would have written."""

    def max_rows(self, sequence):
        return 1 + LONGEST

    def propose(self, sequences, drafted):
        return [self._rows(sequence) for sequence in sequences]

    def accept(self, outputs):
        return [self._accepted(output) for output in outputs]

    def _rows(self, sequence):
        tokens = sequence.token_ids
        draft = copied(tokens)[: max(0, min(LONGEST, sequence.num_remaining - 1))]
        rows = [tokens[-1], *draft]  # row j predicts the token after it
        return Rows(sequence, ModelRole.VERIFIER, rows, sequence.num_tokens - 1, len(rows))

    def _accepted(self, output):
        draft = output.rows.token_ids[1:]
        num_accepted = count_accepted_prefix(draft, output.token_ids)
        output.rows.sequence.record_draft(len(draft), num_accepted)
        return output.token_ids[: num_accepted + 1]


def copied(tokens):
    """What came after the latest earlier occurrence of the last two tokens."""
    for start in range(len(tokens) - 3, -1, -1):
        if tokens[start : start + 2] == tokens[-2:]:
            return tokens[start + 2 :]
    return []
