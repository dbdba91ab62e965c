"""Runs one step: rounds of proposals, one packed forward a model and round, then acceptance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from engine.generation.forwards import Forwards
from engine.generation.rounds import DraftRounds
from engine.generation.step_clock import Schedule, StepClock
from engine.generation.strategy import GenerationStrategy, ModelRole, Rows, RowsOutput
from engine.models.model_runner import ModelRunner
from engine.models.token_sampler import TokenSampler
from engine.request.outputs import Ending, TokenLogprobs
from engine.request.sequence import Sequence


class Commit(NamedTuple):
    """What one sequence gains in a step; `num_computed` tokens then have KV (before the commit)."""

    sequence: Sequence
    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    num_computed: int
    ending: Ending | None = None


class StepRunner:
    """Lets all strategies share one forward a model and round."""

    def __init__(
        self,
        runner: ModelRunner,
        sampler: TokenSampler,
        strategies: Mapping[str, GenerationStrategy],
    ) -> None:
        self._forwards = Forwards(runner, sampler)
        self._sampler = sampler
        self._strategies = strategies
        self._clock = StepClock()

    def run(self, schedule: Schedule) -> list[Commit]:
        """Advance every scheduled sequence; counts their forwards, and commits nothing to them."""
        if not schedule.decoding and not schedule.prefills:
            return []  # no model can run zero rows
        self._report(schedule)
        rounds = DraftRounds(self._forwards, self._strategies, schedule.decoding)
        rounds.run()
        prefill_rows = [_prefill_rows(seq, count) for seq, count in schedule.prefills]
        all_rows = [*rounds.verifier_rows, *prefill_rows]
        verified = self._forwards.verify(all_rows) if all_rows else []
        self._clock.note(schedule, rounds)
        commits: list[Commit] = []
        for name, outputs in rounds.final_outputs(verified).items():
            strategy = self._strategies[name]
            tokens = strategy.accept(outputs)
            commits += [
                self._commit(output, own, strategy.ending(output.rows.sequence))
                for output, own in zip(outputs, tokens, strict=True)
            ]
        prefilled = verified[len(rounds.verifier_rows) :]
        return commits + [self._prefill_commit(output) for output in prefilled]

    def _report(self, schedule: Schedule) -> None:
        """Tell those who took part in the last step what it has cost."""
        timing = self._clock.start(schedule)
        if timing is None:
            return
        for mode in self._clock.modes:
            self._strategies[mode].observe(timing)

    def _commit(self, output: RowsOutput, token_ids: list[int], ending: Ending | None) -> Commit:
        sequence = output.rows.sequence
        num_top = sequence.params.logprobs
        logprobs: list[TokenLogprobs] = []
        if num_top is not None and token_ids:
            logits = output.logits[: len(token_ids)]
            logprobs = self._sampler.logprobs(logits, token_ids, num_top)
        num_computed = sequence.num_computed
        if output.rows.model is ModelRole.VERIFIER:
            # The newest committed token has no KV yet; a rejected one's is overwritten.
            num_computed = sequence.num_tokens - 1 + len(token_ids)
        return Commit(sequence, token_ids, logprobs, num_computed, ending)

    def _prefill_commit(self, output: RowsOutput) -> Commit:
        rows, sequence = output.rows, output.rows.sequence
        end = rows.start + len(rows.token_ids)
        if sequence.wants_prompt_logprobs:
            self._keep_prompt_logprobs(output)
        if end < sequence.num_tokens:
            return Commit(sequence, [], [], end)
        if sequence.num_output_tokens and not self._resumes_with_verifier(sequence):
            return Commit(sequence, [], [], end - 1)  # the last token is read in the next step
        token_ids = output.token_ids[-1:]
        logprobs: list[TokenLogprobs] = []
        if sequence.params.logprobs is not None:
            logprobs = self._sampler.logprobs(
                output.logits[-1:], token_ids, sequence.params.logprobs
            )
        return Commit(sequence, token_ids, logprobs, end)

    def _resumes_with_verifier(self, sequence: Sequence) -> bool:
        return self._strategies[sequence.mode].resumes_with_verifier

    def _keep_prompt_logprobs(self, output: RowsOutput) -> None:
        rows, sequence = output.rows, output.rows.sequence
        kept: list[TokenLogprobs] = []
        if rows.start == 0:
            kept.append(self._sampler.unconditional(sequence.token_ids[0]))
        following = sequence.prompt_token_ids[rows.start + 1 : rows.start + 1 + rows.num_logits]
        if following:
            num_top = sequence.params.logprobs or 0
            logits = output.logits[: len(following)]
            kept += self._sampler.logprobs(logits, following, num_top)
        sequence.keep_prompt_logprobs(rows.start + (rows.start > 0), kept)


def _prefill_rows(sequence: Sequence, count: int) -> Rows:
    start = sequence.num_computed
    token_ids = sequence.token_ids[start : start + count]
    if sequence.wants_prompt_logprobs:
        num_logits = count
    else:
        num_logits = 1 if start + count == sequence.num_tokens else 0
    return Rows(sequence, ModelRole.VERIFIER, token_ids, start, num_logits)
