"""How much of a verified draft stands, by the rule that the request has chosen.

Coupled (the default): while the verifier draws the same token with the same noise. Rejection: with
min(1, p / q), from the distributions that verifier and drafter drew from. Either way a token
follows what stands. Lossy, where it is asked for: a token that was drafted with certainty
stands whatever the verifier says.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from engine.decoding.diffusion_sampler import DiffusionSampler
from engine.decoding.verification import count_accepted_prefix, count_accepted_unless_sure
from engine.generation.forwards import verify_pick
from engine.generation.strategy import RowsOutput
from engine.models.token_sampler import TokenSampler
from engine.request.sequence import Sequence

_confidence = DiffusionSampler().confidence  # the probability of what was drawn


class DraftJudge:
    """Keeps what is known of a step's drafts until they have been verified."""

    def __init__(self, sampler: TokenSampler) -> None:
        self._sampler = sampler
        self._logprobs: dict[str, Tensor] = {}
        self._confidences: dict[str, list[float]] = {}

    def forget_drafts(self) -> None:
        """Start a step: nothing is drafted yet."""
        self._logprobs.clear()
        self._confidences.clear()

    def note(self, drafted: Seq[RowsOutput]) -> None:
        """Remember what one-pass drafts were drawn from, where the rule will ask for it."""
        for output in drafted:
            if not output.token_ids:
                continue  # only read
            sequence_id = output.rows.sequence.sequence_id
            if output.logprobs is not None:
                self._logprobs[sequence_id] = output.logprobs
            if output.rows.sequence.options.skip_verify_confidence is not None:
                token_ids = torch.tensor(output.token_ids, device=output.logits.device)
                confidences = _confidence(output.logits, token_ids.long())
                self.note_confidences(output.rows.sequence, confidences.tolist())

    def note_confidences(self, sequence: Sequence, confidences: Seq[float]) -> None:
        """Remember how sure of each token of the sequence's draft was who drafted it."""
        self._confidences[sequence.sequence_id] = list(confidences)

    def judge(self, outputs: Seq[RowsOutput]) -> list[list[int]]:
        """What each sequence commits, given the verifier's outputs along the drafts."""
        with_logprobs = [output for output in outputs if output.logprobs is not None]
        rejected = iter(self._by_rejection(with_logprobs))
        return [
            self._by_coupling(output) if output.logprobs is None else next(rejected)
            for output in outputs
        ]

    def _by_coupling(self, output: RowsOutput) -> list[int]:
        sequence, draft = output.rows.sequence, output.rows.token_ids[1:]
        sure = sequence.options.skip_verify_confidence
        confidences = self._confidences.get(sequence.sequence_id)
        if sure is None or confidences is None:  # a prediction has no confidence
            num_accepted = count_accepted_prefix(draft, output.token_ids)
            return output.token_ids[: num_accepted + 1]
        count = count_accepted_unless_sure(draft, output.token_ids, confidences, sure)
        return [*draft[:count], output.token_ids[count]]

    def _by_rejection(self, outputs: Seq[RowsOutput]) -> list[list[int]]:
        if not outputs:
            return []
        target = torch.cat([_logprobs(output) for output in outputs])
        drafted = torch.cat([self._drafted_logprobs(output) for output in outputs])
        drafts = [output.rows.token_ids[1:] for output in outputs]
        picks = [verify_pick(output.rows) for output in outputs]
        return self._sampler.verify_by_rejection(target, drafted, drafts, picks)

    def _drafted_logprobs(self, output: RowsOutput) -> Tensor:
        """log q~, [k, V]: of what was drawn; a client's prediction is certain of itself."""
        draft = output.rows.token_ids[1:]
        drawn = self._logprobs.get(output.rows.sequence.sequence_id)
        if drawn is not None:
            assert len(drawn) == len(draft), "a draft that p / q judges is never cut"
            return drawn
        points = torch.full_like(_logprobs(output)[: len(draft)], -torch.inf)
        token_ids = torch.tensor(list(draft), dtype=torch.int64, device=points.device)
        return points.scatter_(1, token_ids[:, None], 0.0)


def _logprobs(output: RowsOutput) -> Tensor:
    assert output.logprobs is not None, "these rows have asked for them"
    return output.logprobs
