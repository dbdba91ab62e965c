"""Runs one step: rounds of proposals, one packed forward a model and round, then acceptance."""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from torch import Tensor

from engine.generation.strategy import (
    GenerationStrategy,
    ModelRole,
    Rows,
    RowsOutput,
    StepTiming,
)
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span
from engine.models.token_sampler import Pick, TokenSampler
from engine.request.outputs import TokenLogprobs
from engine.request.sequence import Sequence

MAX_DRAFT_ROUNDS = 64
"""A strategy that asks for more has a fault, and would hold up everybody in the batch."""


@dataclass(frozen=True)
class Schedule:
    """The sequences of one step: some decode, some read the next chunk of their prompt."""

    decoding: list[Sequence] = field(default_factory=list)
    prefills: list[tuple[Sequence, int]] = field(default_factory=list)
    """With the number of tokens to read."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What one sequence gains in a step; `num_computed` tokens then have KV (before the commit)."""

    sequence: Sequence
    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    num_computed: int


class StepRunner:
    """Lets all strategies share one drafter and one verifier forward a round."""

    def __init__(
        self,
        runner: ModelRunner,
        sampler: TokenSampler,
        strategies: Mapping[str, GenerationStrategy],
    ) -> None:
        self._runner = runner
        self._sampler = sampler
        self._strategies = strategies

    def run(self, schedule: Schedule) -> list[Commit]:
        """Advance every scheduled sequence; changes none of them (`Sequence.commit` does)."""
        if not schedule.decoding and not schedule.prefills:
            return []  # no model can run zero rows
        parties = self._by_strategy(schedule.decoding)
        started = time.perf_counter()
        verifier_rows, num_blocks = self._draft_rounds(parties)
        drafted = time.perf_counter()
        decode_rows = [rows for party_rows in verifier_rows.values() for rows in party_rows]
        prefill_rows = [_prefill_rows(seq, count) for seq, count in schedule.prefills]
        outputs = self._verify([*decode_rows, *prefill_rows])
        timing = StepTiming(
            draft_s=drafted - started,
            num_blocks=num_blocks,
            verify_s=time.perf_counter() - drafted,
            num_rows=sum(len(rows.token_ids) for rows in decode_rows),
            num_prefill_rows=sum(count for _, count in schedule.prefills),
        )
        commits: list[Commit] = []
        start = 0
        for name, party_rows in verifier_rows.items():
            party_outputs = outputs[start : start + len(party_rows)]
            start += len(party_rows)
            self._strategies[name].observe(timing)
            tokens = self._strategies[name].accept(party_outputs)
            commits += [self._commit(*pair) for pair in zip(party_outputs, tokens, strict=True)]
        return commits + [self._prefill_commit(output) for output in outputs[start:]]

    def _by_strategy(self, sequences: Seq[Sequence]) -> dict[str, list[Sequence]]:
        parties: dict[str, list[Sequence]] = {}
        for sequence in sequences:
            parties.setdefault(sequence.mode, []).append(sequence)
        return parties

    def _draft_rounds(
        self, parties: Mapping[str, list[Sequence]]
    ) -> tuple[dict[str, list[Rows]], int]:
        """Ask every strategy until all of them want the verifier; counts drafted blocks."""
        proposals = {name: self._strategies[name].propose(p, ()) for name, p in parties.items()}
        num_blocks = 0
        for _ in range(MAX_DRAFT_ROUNDS):
            blocks = {
                name: rows
                for name, rows in proposals.items()
                if rows and rows[0].model is ModelRole.DRAFTER
            }
            if not blocks:
                return proposals, num_blocks
            flat = [rows for party_rows in blocks.values() for rows in party_rows]
            num_blocks += len(flat)
            outputs = self._draft(flat)
            start = 0
            for name, party_rows in blocks.items():
                drafted = outputs[start : start + len(party_rows)]
                start += len(party_rows)
                proposals[name] = self._strategies[name].propose(parties[name], drafted)
        raise RuntimeError(f"{', '.join(blocks)}: still drafting after {MAX_DRAFT_ROUNDS} rounds")

    def _draft(self, blocks: Seq[Rows]) -> list[RowsOutput]:
        spans = [Span(r.token_ids, r.start, r.sequence.page_ids) for r in blocks]
        logits = self._runner.draft(spans, [rows.num_logits for rows in blocks])
        picks = [
            Pick(
                r.sequence,
                r.start + 1 - r.sequence.num_prompt_tokens,
                r.num_logits,
                is_drafter=True,
            )
            for r in blocks
        ]
        if not self._runner.chains_drafts:
            return _outputs(blocks, logits, self._sampler.sample(logits, picks))
        anchors = [r.token_ids[0] for r in blocks]
        bias = self._runner.next_token_bias
        tokens = self._sampler.sample_chained(logits, picks, anchors, bias)
        return _outputs(blocks, logits, tokens)

    def _verify(self, all_rows: Seq[Rows]) -> list[RowsOutput]:
        spans, picks = [], []
        wanted: list[int] = []
        offset = 0
        for rows in all_rows:
            spans.append(Span(rows.token_ids, rows.start, rows.sequence.page_ids))
            offset += len(rows.token_ids)
            wanted.extend(range(offset - rows.num_logits, offset))
            end = rows.start + len(rows.token_ids)
            first = end - rows.num_logits + 1 - rows.sequence.num_prompt_tokens
            # A re-read output (pre-empted, replayed) is no draft, though it may have many logits.
            is_draft = rows.start == rows.sequence.num_tokens - 1
            draft = rows.token_ids[1:] if is_draft else ()
            picks.append(Pick(rows.sequence, first, rows.num_logits, draft))
        logits = self._runner.verify(spans, wanted)
        tokens = self._sampler.sample(logits, picks) if len(logits) else [[] for _ in picks]
        return _outputs(all_rows, logits, tokens)

    def _commit(self, output: RowsOutput, token_ids: list[int]) -> Commit:
        sequence = output.rows.sequence
        num_top = sequence.params.logprobs
        logprobs: list[TokenLogprobs] = []
        if num_top is not None and token_ids:
            logits = output.logits[: len(token_ids)]
            logprobs = self._sampler.logprobs(logits, token_ids, num_top)
        # The newest committed token has no KV yet; a rejected one's is overwritten.
        num_computed = sequence.num_tokens - 1 + len(token_ids)
        return Commit(sequence, token_ids, logprobs, num_computed)

    def _prefill_commit(self, output: RowsOutput) -> Commit:
        rows, sequence = output.rows, output.rows.sequence
        end = rows.start + len(rows.token_ids)
        if sequence.wants_prompt_logprobs:
            self._keep_prompt_logprobs(output)
        if end < sequence.num_tokens:
            return Commit(sequence, [], [], end)
        token_ids = output.token_ids[-1:]
        logprobs: list[TokenLogprobs] = []
        if sequence.params.logprobs is not None:
            logprobs = self._sampler.logprobs(
                output.logits[-1:], token_ids, sequence.params.logprobs
            )
        return Commit(sequence, token_ids, logprobs, end)

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


def _outputs(all_rows: Seq[Rows], logits: Tensor, tokens: Seq[list[int]]) -> list[RowsOutput]:
    outputs, start = [], 0
    for rows, token_ids in zip(all_rows, tokens, strict=True):
        own = logits[start : start + rows.num_logits]
        outputs.append(RowsOutput(rows, token_ids, own))
        start += rows.num_logits
    return outputs


def _prefill_rows(sequence: Sequence, count: int) -> Rows:
    start = sequence.num_computed
    token_ids = sequence.token_ids[start : start + count]
    if sequence.wants_prompt_logprobs:
        num_logits = count
    else:
        num_logits = 1 if start + count == sequence.num_tokens else 0
    return Rows(sequence, ModelRole.VERIFIER, token_ids, start, num_logits)
