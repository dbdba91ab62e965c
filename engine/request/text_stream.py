"""Tokens to text while they arrive: no character is ever split, no stop string ever shown."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol


class Detokenizer(Protocol):
    """What a stream of text needs to know of a tokenizer."""

    def is_text(self, token_id: int) -> bool: ...
    def continuation_bytes(self, previous: int | None, token_id: int) -> bytes: ...


class TextStream:
    """Incremental detokenization at a constant cost a token.

    The pushes and the flush together are what decoding all tokens at once gives. U+FFFD stands
    only for bytes that can no longer become a character.
    """

    def __init__(self, tokenizer: Detokenizer, context: Sequence[int] = ()) -> None:
        """`context` is text before the first push, such as a prompt that is to be continued."""
        self._tokenizer = tokenizer
        rendered = (token_id for token_id in reversed(context) if tokenizer.is_text(token_id))
        self._previous = next(rendered, None)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that has become certain with this token; often none, inside a character."""
        if not self._tokenizer.is_text(token_id):
            return ""
        new_bytes = self._tokenizer.continuation_bytes(self._previous, token_id)
        self._previous = token_id
        return self._utf8.decode(new_bytes)

    def flush(self) -> str:
        """What an unfinished character leaves behind at the very end."""
        return self._utf8.decode(b"", final=True)


def hole_texts(
    tokenizer: Detokenizer,
    prompt: Sequence[int],
    holes: Sequence[Sequence[int]],
    suffixes: Sequence[Sequence[int]],
) -> tuple[str, ...]:
    """The text of each hole, as it follows on what stands before it; one suffix a hole."""
    texts = []
    before = list(prompt)
    for hole, suffix in zip(holes, suffixes, strict=True):
        stream = TextStream(tokenizer, before)
        texts.append("".join(map(stream.push, hole)) + stream.flush())
        before += [*hole, *suffix]
    return tuple(texts)


class StopMatcher:
    """Finds stop strings across token borders, and holds back only what may become one.

    The match that is complete first wins, so the result does not depend on how the text was cut
    into pushes; of two that end together, the longer.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._patterns = [_Pattern(text) for text in stop]
        self._held = ""

    def push(self, text: str, *, may_stop: bool = True) -> tuple[str, bool]:
        """Text that may be shown now, and whether a stop string has ended it (and is cut off).

        With `may_stop` false a stop string that is complete now counts as text.
        """
        if not self._patterns:
            return text, False
        buffer = self._held + text
        for end, char in enumerate(text, start=len(self._held) + 1):
            # Every pattern must see every character, so no short cut with any().
            matched = max(pattern.advance(char) for pattern in self._patterns)
            if matched and may_stop:
                self._held = ""
                return buffer[: end - matched], True
        num_held = max(pattern.num_open for pattern in self._patterns)
        num_shown = len(buffer) - num_held
        self._held = buffer[num_shown:]
        return buffer[:num_shown], False

    def flush(self) -> str:
        """What was held back, once no more text can come."""
        held, self._held = self._held, ""
        return held


class _Pattern:
    """Knuth, Morris and Pratt's search, a character at a time.

    A stop string may be long and comes from outside: looking for it anew in every push would let
    one request slow a whole worker down.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._num_matched = 0
        self._borders = [0]  # of each prefix: its longest proper prefix that is also its end
        for char in text[1:]:
            self._borders.append(self._extend(self._borders[-1], char))

    @property
    def num_open(self) -> int:
        """Length of the longest end of what was seen that begins, but is not, the pattern."""
        whole = self._num_matched == len(self._text)
        return self._borders[-1] if whole else self._num_matched

    def advance(self, char: str) -> int:
        """The pattern's length where it is complete with this character, else 0."""
        self._num_matched = self._extend(self.num_open, char)
        return len(self._text) if self._num_matched == len(self._text) else 0

    def _extend(self, length: int, char: str) -> int:
        while length and self._text[length] != char:
            length = self._borders[length - 1]
        return length + (self._text[length] == char)
