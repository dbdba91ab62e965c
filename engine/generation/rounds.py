"""The rounds of one step: strategies propose, drafting forwards run, until all rows are final."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq

from engine.generation.forwards import Forwards
from engine.generation.strategy import Forward, GenerationStrategy, ModelRole, Rows, RowsOutput
from engine.request.sequence import Sequence

MAX_DRAFT_ROUNDS = 64
"""A strategy that asks for more has a fault, and would hold up everybody in the batch."""


class DraftRounds:
    """Asks every strategy round after round; drafter and diffusion model run once a round each.

    Verifier rows are collected, for the one verifier forward that ends the step.
    """

    def __init__(
        self,
        forwards: Forwards,
        strategies: Mapping[str, GenerationStrategy],
        sequences: Seq[Sequence],
    ) -> None:
        self.verifier_rows: list[Rows] = []
        self.drafts: list[Forward] = []
        self.denoises: list[Forward] = []
        self._forwards = forwards
        self._strategies = strategies
        self._finals: dict[str, list[RowsOutput | Rows]] = {}
        self._waiting: dict[str, list[Sequence]] = {}
        for sequence in sequences:
            self._waiting.setdefault(sequence.mode, []).append(sequence)

    def run(self) -> None:
        """Go on until every sequence has its final rows."""
        drafted: dict[str, list[RowsOutput]] = {}
        for _ in range(MAX_DRAFT_ROUNDS):
            rows = self._propose(drafted)
            if not (rows or self._waiting):
                return  # as most steps end: with rows for the verifier alone
            outputs = self._run_models(rows)
            drafted = {}
            for (name, own), output in zip(rows, outputs, strict=True):
                if own.is_drafting:
                    drafted.setdefault(name, []).append(output)
                else:
                    self._finals.setdefault(name, []).append(output)
            if not self._waiting:
                return
        names = ", ".join(self._waiting)
        raise RuntimeError(f"{names}: still drafting after {MAX_DRAFT_ROUNDS} rounds")

    def final_outputs(self, verified: Seq[RowsOutput]) -> dict[str, list[RowsOutput]]:
        """By strategy, given what the verifier made of `verifier_rows`."""
        output_of = {id(output.rows): output for output in verified}
        return {
            name: [
                final if isinstance(final, RowsOutput) else output_of[id(final)] for final in finals
            ]
            for name, finals in self._finals.items()
        }

    def _propose(self, drafted: Mapping[str, Seq[RowsOutput]]) -> list[tuple[str, Rows]]:
        """Rows that are to run in this round; those for the verifier are put aside."""
        now: list[tuple[str, Rows]] = []
        for name, sequences in list(self._waiting.items()):
            proposed = self._strategies[name].propose(sequences, drafted.get(name, ()))
            final = {r.sequence.sequence_id for r in proposed if not r.is_drafting}
            self._waiting[name] = [seq for seq in sequences if seq.sequence_id not in final]
            if not self._waiting[name]:
                del self._waiting[name]
            elif not any(rows.is_drafting for rows in proposed):
                raise RuntimeError(f"{name}: neither drafts for a sequence nor ends its step")
            for rows in proposed:
                if rows.model is ModelRole.VERIFIER:
                    self.verifier_rows.append(rows)
                    self._finals.setdefault(name, []).append(rows)
                else:
                    now.append((name, rows))
        return now

    def _run_models(self, named_rows: Seq[tuple[str, Rows]]) -> Iterator[RowsOutput]:
        """The outputs in the order of the rows."""
        if not named_rows:
            return
        all_rows = [rows for _, rows in named_rows]
        blocks = [rows for rows in all_rows if rows.model is ModelRole.DRAFTER]
        others = [rows for rows in all_rows if rows.model is ModelRole.DIFFUSION]
        drafted = iter(_timed(self._forwards.draft, blocks, len(blocks), self.drafts))
        num_rows = sum(len(rows.token_ids) for rows in others)
        denoised = iter(_timed(self._forwards.denoise, others, num_rows, self.denoises))
        for rows in all_rows:
            yield next(drafted if rows.model is ModelRole.DRAFTER else denoised)


def _timed(
    forward: Callable[[Seq[Rows]], list[RowsOutput]],
    rows: Seq[Rows],
    size: int,
    log: list[Forward],
) -> list[RowsOutput]:
    if not rows:
        return []
    started = time.perf_counter()
    outputs = forward(rows)
    log.append(Forward(size, time.perf_counter() - started))
    return outputs
