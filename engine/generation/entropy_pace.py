"""How long and how often to denoise each sequence's drafts, by the entropy of its drafts alone."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from engine.base import EntropyComputer
from engine.entropy_controller import EntropyAdaptiveController, EntropyAdvice, EntropyConfig
from engine.generation.strategy import RowsOutput
from engine.request.sequence import Sequence


class EntropyPace:
    """One controller a sequence: some texts are easier than others, and stay so for a while."""

    def __init__(self, config: EntropyConfig, max_draft_length: int, max_steps: int) -> None:
        self._config = config
        self._max_draft_length = max_draft_length
        self._max_steps = max_steps
        self._entropy = EntropyComputer()
        self._controllers: dict[str, EntropyAdaptiveController] = {}

    def advice(self, sequence: Sequence) -> EntropyAdvice:
        """Steps and length for the sequence's next draft; length 0 is the AR fallback."""
        return self._controller(sequence).recommend()

    def take(self, drafted: Seq[RowsOutput]) -> None:
        """Learn from the first denoising step of these drafts, which is the same for all."""
        if not drafted:
            return
        entropies = iter(self._entropy(torch.cat([o.logits for o in drafted])).tolist())
        for output in drafted:
            own = [next(entropies) for _ in output.token_ids]
            self._controller(output.rows.sequence).update(own)

    def rest(self, sequence: Sequence) -> None:
        """A step without a draft: what was seen fades, or nobody would ever draft again."""
        self._controller(sequence).update(())

    def forget(self, sequence: Sequence) -> None:
        self._controllers.pop(sequence.sequence_id, None)

    def _controller(self, sequence: Sequence) -> EntropyAdaptiveController:
        known = self._controllers.get(sequence.sequence_id)
        if known is None:
            known = EntropyAdaptiveController(self._config, self._max_draft_length, self._max_steps)
            self._controllers[sequence.sequence_id] = known
        return known
