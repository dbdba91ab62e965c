"""Predicted outputs: what a client expects the answer to be, used as a draft that costs nothing.

As in OpenAI's `prediction`: an edit of a long text repeats most of it. The prediction is found
again after a difference, so that a changed word does not lose the rest.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from weakref import WeakKeyDictionary

from engine.request.sequence import Sequence

MAX_PREDICTED = 16
"""Tokens taken from a prediction at once: beyond that a difference wastes more than it saves."""
_MATCHED = (8, 4, 2)  # tokens that must agree for a place to be found; more are asked for first


_latest: WeakKeyDictionary[Sequence, tuple[int, list[int]]] = WeakKeyDictionary()
"""Of each sequence the draft found last, and after how many tokens. Output only grows, so the draft
is a function of that number; a step asks several times, and a prediction may be long."""


def predicted_draft(sequence: Sequence) -> list[int]:
    """What the client expects to come next, for the verifier to check; mostly nothing."""
    prediction = sequence.options.prediction
    if not prediction:
        return []
    num_tokens, draft = _latest.get(sequence, (-1, []))
    if num_tokens != sequence.num_tokens:
        limit = min(MAX_PREDICTED, sequence.num_remaining - 1)
        draft = continuation(prediction, sequence.output_token_ids, limit)
        _latest[sequence] = sequence.num_tokens, draft
    return draft


def continuation(prediction: Seq[int], output: Seq[int], limit: int) -> list[int]:
    """The predicted tokens after what the output ends with; none where that is not found.

    Of several places the one nearest to the output's own length is taken.
    """
    if limit <= 0:
        return []
    if list(prediction[: len(output)]) == list(output):
        return list(prediction[len(output) : len(output) + limit])
    text = _as_text(prediction[:-1])  # after its last token nothing follows
    for num_tokens in _MATCHED:
        if len(output) >= num_tokens:
            end = _nearest_end(text, _as_text(output[-num_tokens:]), len(output))
            if end is not None:
                return list(prediction[end : end + limit])
    return []


def _nearest_end(text: str, wanted: str, near: int) -> int | None:
    """The place after the occurrence of `wanted` that ends nearest to the token number `near`."""
    before = text.rfind(wanted, 0, near)
    after = text.find(wanted, max(0, near - len(wanted)))
    ends = [start + len(wanted) for start in (before, after) if start >= 0]
    return min(ends, key=lambda end: abs(end - near), default=None)


def _as_text(token_ids: Seq[int]) -> str:
    """A character a token: text is searched a hundred times as fast, whatever is in it."""
    return "".join(map(chr, token_ids))
