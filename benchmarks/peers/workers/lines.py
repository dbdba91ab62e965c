"""How a worker is asked and answers: lines of JSON on its standard input and output."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

Generate = Callable[[list[list[int]], int], list[list[int]]]
"""Prompts, all at once, and how many tokens to write for each -> the new tokens of each."""


class Lines:
    """Takes the standard output for its own; whatever else prints goes to the log."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def serve(self, generate: Generate) -> None:
        """Say that all is loaded, then answer until the input ends."""
        self._say({"ready": True})
        for line in sys.stdin:
            asked = json.loads(line)
            prompts, at_once = asked["prompts"], asked["at_once"]
            token_ids: list[list[int]] = []
            started = time.perf_counter()
            for start in range(0, len(prompts), at_once):
                token_ids += generate(prompts[start : start + at_once], asked["num_tokens"])
            self._say({"seconds": time.perf_counter() - started, "token_ids": token_ids})

    def _say(self, answer: dict[str, object]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()
