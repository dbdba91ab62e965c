"""Cuts drafts before they are verified, where their own logits say that little more will stand."""

from __future__ import annotations

import time
from collections.abc import Container
from collections.abc import Sequence as Seq
from itertools import accumulate
from operator import mul
from typing import NamedTuple

import torch

from engine.acceptance_model import AcceptanceModel
from engine.draft_planner import Candidate, Cost, plan_lengths
from engine.entropy_controller import (
    Array,
    DraftOutcome,
    EntropyAwareDraftController,
    EntropyConfig,
    EntropyStats,
    certainty,
)
from engine.generation.forwards import denoise_pick, draft_pick
from engine.generation.predicted_output import predicted_draft
from engine.generation.strategy import ModelRole, RowsOutput
from engine.models.token_sampler import TokenSampler
from engine.request.sequence import Sequence

_LOOK_EVERY = 16
"""Rounds of drafts, one of which is looked at whatever it costs."""
_FRESH = 0.1  # weight of the newest time


class _Judged(NamedTuple):
    """What is known of one draft until it has been verified."""

    features: Array
    chances: list[float]  # of each token, given that all before it are accepted


class DraftCutter:
    """Asks the controller about each draft of a round, and tells it what became of them.

    Looking costs time, too. Where rows of the verifier are so cheap that no cut could save as much,
    it looks only now and then, so that the fit and the time that a look takes stay known.
    """

    def __init__(
        self, config: EntropyConfig, sampler: TokenSampler, acceptance: AcceptanceModel
    ) -> None:
        self._controller = EntropyAwareDraftController(config)
        self._sampler = sampler
        self._acceptance = acceptance
        self._judged: dict[str, _Judged] = {}
        self._look_s = 0.0
        self._num_rounds = 0
        self.is_looking = False
        """Whether the drafts of this round will be judged; then they may be longer than planned."""

    @property
    def stats(self) -> EntropyStats:
        return self._controller.stats

    def decide(self, candidates: Seq[Candidate], lengths: Seq[int], verify_cost: Cost) -> None:
        """Whether to look at the drafts that were just planned.

        Rows that will be refused are what there is to save; the logits betray about half of them.
        """
        self._num_rounds += 1
        planned = list(zip(candidates, lengths, strict=True))
        num_rows = len(candidates) + sum(lengths)
        num_wasted = sum(length - sum(c.survivals[:length]) for c, length in planned)
        saved_s = verify_cost(num_rows) - verify_cost(num_rows - num_wasted / 2)
        self.is_looking = saved_s > self._look_s or self._num_rounds % _LOOK_EVERY == 0

    def cut(
        self,
        sequences: Seq[Sequence],
        drafted: Seq[RowsOutput],
        whole: Container[str],
        verify_cost: Cost,
        spent_s: float,
    ) -> dict[str, list[int]]:
        """What is left of each draft, by sequence; those of `whole` sequences are not cut.

        `sequences` are all that share the verifier's forward, `spent_s` is what the drafts cost.
        """
        drafts = {o.rows.sequence.sequence_id: o.token_ids for o in drafted if o.token_ids}
        self._judged.clear()
        if not drafts or not self.is_looking:
            return drafts
        started = time.perf_counter()
        self._judge([output for output in drafted if output.token_ids])
        candidates = [self._candidate(seq, drafts, whole) for seq in sequences]
        lengths = plan_lengths(candidates, lambda rows: verify_cost(rows) + spent_s, _nothing)
        for seq, length in zip(sequences, lengths, strict=True):
            draft = drafts.get(seq.sequence_id)
            if draft is not None:
                self.stats.num_cut_tokens += len(draft) - length
                drafts[seq.sequence_id] = draft[:length]
        self._look_s += (time.perf_counter() - started - self._look_s) * _FRESH
        return drafts

    def cut_off(self, sequence_id: str, num_verified: int) -> list[float]:
        """Chances of the tokens that were drafted for a sequence but not verified."""
        judged = self._judged.get(sequence_id)
        return [] if judged is None else judged.chances[num_verified:]

    def learn(self, fates: Seq[tuple[str, int, int]]) -> None:
        """Of every sequence in the step: the draft tokens that were verified, and that stood."""
        outcomes = []
        for sequence_id, num_verified, num_accepted in fates:
            judged = self._judged.pop(sequence_id, None)
            if judged is not None:
                outcomes.append(DraftOutcome(judged.features, num_verified, num_accepted))
        self._controller.update(outcomes)

    def _judge(self, outputs: Seq[RowsOutput]) -> None:
        """One look at the logits of all drafts of the round."""
        logits = torch.cat([output.logits for output in outputs])
        picks = [
            draft_pick(o.rows) if o.rows.model is ModelRole.DRAFTER else denoise_pick(o.rows)
            for o in outputs
        ]
        ids = [output.rows.sequence.sequence_id for output in outputs]
        lengths = [len(output.token_ids) for output in outputs]
        prior = [
            chance
            for sequence_id, length in zip(ids, lengths, strict=True)
            for chance in self._acceptance.chances(sequence_id, length)
        ]
        certain = certainty(logits, self._sampler.leads(logits, picks))
        features = self._controller.features(certain, prior)
        chances = self._controller.recommend()(features).tolist()
        ends = accumulate(lengths)
        for sequence_id, length, end in zip(ids, lengths, ends, strict=True):
            own = slice(end - length, end)
            self._judged[sequence_id] = _Judged(features[own], chances[own])

    def _candidate(
        self, seq: Sequence, drafts: dict[str, list[int]], whole: Container[str]
    ) -> Candidate:
        judged = self._judged.get(seq.sequence_id)
        if judged is None:
            return Candidate((), len(predicted_draft(seq)), needs_block=False)
        fixed = len(drafts[seq.sequence_id]) if seq.sequence_id in whole else None
        return Candidate(list(accumulate(judged.chances, mul)), fixed, needs_block=False)


def _nothing(size: float) -> float:
    return 0.0
