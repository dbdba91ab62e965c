"""What an own verifier is asked to continue, and what it reads, from the user's own documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from engine.request.errors import InvalidRequestError
from engine.request.tokenizer import Tokenizer
from engine.training.documents import Document
from engine.training.own_verifier import OptionError
from engine.training.rollouts import TEXT_PROMPT

Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Lessons:
    """Documents as token ids, in the form in which the server gives them to the verifier."""

    tokenizer: Tokenizer
    max_prompt: int

    def hold_back(
        self, documents: list[Document], count: int, seed: int
    ) -> tuple[list[Document], list[list[int]]]:
        """(documents to learn from, prompts to judge by): at most a tenth is held back."""
        if len(documents) < 2:
            raise OptionError("--data: at least two documents are needed, one of them to judge by")
        random = np.random.default_rng(seed)
        most = max(1, min(count, len(documents) // 10))
        held: dict[int, list[int]] = {}
        for index in random.permutation(len(documents)):
            prompt = self._prompt(documents[int(index)], random)
            if prompt:
                held[int(index)] = prompt
            if len(held) == most:
                break
        if not held:
            raise OptionError(self._why_none(documents))
        return [d for i, d in enumerate(documents) if i not in held], list(held.values())

    def prompts(self, documents: list[Document], count: int, seed: int) -> list[list[int]]:
        """`count` prompts, from all documents in turn and again; each time perhaps another head."""
        random = np.random.default_rng(seed)
        found: list[list[int]] = []
        while len(found) < count:
            order = random.permutation(len(documents))
            drawn = (self._prompt(documents[int(index)], random) for index in order)
            more = list(islice(filter(None, drawn), count - len(found)))
            if not more:
                raise OptionError(self._why_none(documents))
            found += more
        return found

    def texts(self, documents: list[Document], count: int, length: int) -> list[list[int]]:
        """The beginnings of up to `count` documents as they stand, `length` tokens at most."""
        rendered = (self._whole(document)[:length] for document in documents)
        return list(islice((ids for ids in rendered if len(ids) > 1), count))

    def _prompt(self, document: Document, random: np.random.Generator) -> list[int]:
        """A dialogue up to where an answer begins, or the first words of a text; or nothing."""
        if not document.messages:
            length = min(int(random.integers(*TEXT_PROMPT)), self.max_prompt)
            # Tokens are seldom longer than this, and a text may be a whole book.
            return self.tokenizer.encode(document.text[: 32 * length])[:length]
        heads = list(_heads(document))
        if not heads:
            return []
        prompt = self._chat(heads[int(random.integers(len(heads)))])
        return prompt if len(prompt) <= self.max_prompt else []

    def _whole(self, document: Document) -> list[int]:
        if not document.messages:
            return self.tokenizer.encode(document.text)
        return self._chat(document.messages, answer_follows=False)

    def _chat(self, messages: Turns, answer_follows: bool = True) -> list[int]:
        try:
            return self._render(messages, answer_follows)
        except InvalidRequestError:  # some templates refuse a system turn, or two of one role
            return []

    def _render(self, messages: Turns, answer_follows: bool = True) -> list[int]:
        turns = [{"role": role, "content": content} for role, content in messages]
        return self.tokenizer.apply_chat_template(turns, answer_follows)

    def _why_none(self, documents: list[Document]) -> str:
        try:
            for head in (head for document in documents for head in _heads(document)):
                self._render(head)
        except InvalidRequestError as error:
            return f"--data: no document gives a prompt: {error}"
        return (
            f"--data: no document gives a prompt of 1 to {self.max_prompt} tokens; dialogues need "
            "a turn of the user, and --prompt-tokens is how long a prompt may be"
        )


def _heads(document: Document) -> Iterator[Turns]:
    """All that stands before each turn of the assistant, also before one that is yet to come."""
    for index, (role, _) in enumerate(document.messages):
        if role == "assistant" and index > 0:
            yield document.messages[:index]
    if document.messages and document.messages[-1][0] == "user":
        yield document.messages
