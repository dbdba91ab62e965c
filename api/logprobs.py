"""The wire's log-probabilities in the two forms OpenAI gave them."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from api.responses import ChatLogprobs, ChatTokenLogprob, TextLogprobs, TopLogprob
from worker.wire.messages import TokenLogprob

FLOOR = -9999.0  # JSON has no minus infinity


class TextLogprobsWriter:
    """Writes /v1/completions' form; it counts characters, so each choice needs one of its own."""

    def __init__(self, num_top: int) -> None:
        self._num_top = num_top
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, logprobs: Iterable[TokenLogprob]) -> TextLogprobs:
        written = TextLogprobs([], [], [] if self._num_top else None, [])
        for one in logprobs:
            written.tokens.append(_readable(one.token))
            written.token_logprobs.append(None if one.logprob is None else _finite(one.logprob))
            written.text_offset.append(self._offset)
            if written.top_logprobs is not None:
                written.top_logprobs.append(self._top(one))
            # A character may be spread over several tokens: it starts where its first token does.
            self._offset += len(self._decoder.decode(one.token))
        return written

    def _top(self, one: TokenLogprob) -> dict[str, float] | None:
        if one.logprob is None:
            return None
        return {
            _readable(token): _finite(logprob) for _, token, logprob in one.top[: self._num_top]
        }


def chat_logprobs_body(logprobs: Iterable[TokenLogprob], num_top: int) -> ChatLogprobs:
    return ChatLogprobs(
        [
            ChatTokenLogprob(
                one.token.decode(errors="replace"),
                FLOOR if one.logprob is None else _finite(one.logprob),
                list(one.token),
                [
                    TopLogprob(token.decode(errors="replace"), _finite(logprob), list(token))
                    for _, token, logprob in one.top[:num_top]
                ],
            )
            for one in logprobs
        ]
    )


def _readable(token: bytes) -> str:
    # As keys of one object, broken characters must stay different from each other.
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _finite(logprob: float) -> float:
    return max(logprob, FLOOR)
