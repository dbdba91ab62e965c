"""From rows to outputs: one packed forward of one model, and the tokens drawn from its logits."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

import torch
from torch import Tensor

from engine.generation.strategy import Rows, RowsOutput
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span
from engine.models.pick import Pick
from engine.models.token_sampler import TokenSampler


class Forwards:
    """Runs the rows of all strategies together; each method is one forward."""

    def __init__(self, runner: ModelRunner, sampler: TokenSampler) -> None:
        self._runner = runner
        self._sampler = sampler

    def verify(self, all_rows: Seq[Rows]) -> list[RowsOutput]:
        """Of the verifier: prompts, drafts and plain decode rows alike."""
        spans, picks = [], []
        wanted: list[int] = []
        offset = 0
        for rows in all_rows:
            spans.append(Span(rows.token_ids, rows.start, rows.sequence.page_ids))
            offset += len(rows.token_ids)
            wanted.extend(range(offset - rows.num_logits, offset))
            picks.append(verify_pick(rows))
        runner, sampler = self._runner, self._sampler
        draws = sampler.plan(picks, runner.vocab_size) if runner.uses_kernels else None
        if draws is not None:
            logits = runner.verify_drawn(spans, wanted, draws)
            tokens = sampler.drawn(draws)
        else:
            logits = runner.verify(spans, wanted)
            tokens = sampler.sample(logits, picks) if len(logits) else [[] for _ in picks]
        return self._with_logprobs(_outputs(all_rows, logits, tokens), picks)

    def draft(self, blocks: Seq[Rows]) -> list[RowsOutput]:
        """Of the drafter: a block a sequence."""
        spans = [Span(r.token_ids, r.start, r.sequence.page_ids) for r in blocks]
        lengths = [rows.num_logits for rows in blocks]
        picks = [draft_pick(rows) for rows in blocks]
        anchors = [r.token_ids[0] for r in blocks]
        runner, bias = self._runner, self._runner.next_token_bias
        draws = self._sampler.plan(picks, runner.vocab_size) if runner.draws_drafts else None
        if draws is not None:
            logits, tokens = runner.draft_drawn(spans, lengths, draws)
        elif not runner.chains_drafts:
            logits = runner.draft(spans, lengths)
            tokens = self._sampler.sample(logits, picks)
            return self._with_logprobs(_outputs(blocks, logits, tokens), picks)
        else:
            logits = runner.draft(spans, lengths)
            chain = runner.draw_chained if runner.uses_kernels else None
            tokens = self._sampler.sample_chained(logits, picks, anchors, bias, chain)
        if not any(rows.wants_logits or rows.wants_logprobs for rows in blocks):
            return _outputs(blocks, logits, tokens)
        plain = torch.split(logits, [rows.num_logits for rows in blocks])
        logits = self._sampler.chained_logits(logits, anchors, tokens, bias)
        return self._with_logprobs(_outputs(blocks, logits, tokens), picks, plain)

    def denoise(self, all_rows: Seq[Rows]) -> list[RowsOutput]:
        """Of the diffusion model: contexts that are read, drafts, and blocks of a canvas."""
        shift = int(self._runner.shifts_logits)
        spans: list[Span] = []
        wanted: list[int] = []
        offset = 0
        for rows in all_rows:
            spans += _spans(rows)
            offset += len(rows.token_ids)
            end = offset - rows.num_tail - shift
            wanted.extend(range(end - rows.num_logits, end))
        logits = self._runner.denoise(spans, wanted)
        picks = [denoise_pick(rows) for rows in all_rows]
        if self._runner.canvas is not None and len(logits):
            logits = self._sampler.process(logits, picks)
            tokens = self._sampler.draw(logits, picks)
            return _outputs(all_rows, logits, tokens, self._runner.canvas.soften(logits))
        tokens = self._sampler.sample(logits, picks) if len(logits) else [[] for _ in picks]
        return self._with_logprobs(_outputs(all_rows, logits, tokens), picks)

    def _with_logprobs(
        self, outputs: list[RowsOutput], picks: Seq[Pick], plain: Seq[Tensor] = ()
    ) -> list[RowsOutput]:
        """The outputs, with what their tokens were drawn from where the rows want it.

        `plain` are the logits of chained draws without their bias, a tensor an output.
        """
        wanted = [i for i, output in enumerate(outputs) if output.rows.wants_logprobs]
        if not wanted:
            return outputs
        logits, bias = torch.cat([outputs[i].logits for i in wanted]), None
        if plain:
            unbiased = torch.cat([plain[i] for i in wanted])
            logits, bias = unbiased, logits - unbiased
        logprobs = self._sampler.distribution(logits, [picks[i] for i in wanted], bias)
        parts = torch.split(logprobs, [outputs[i].rows.num_logits for i in wanted])
        for i, part in zip(wanted, parts, strict=True):
            outputs[i] = outputs[i]._replace(logprobs=part)
        return outputs


def verify_pick(rows: Rows) -> Pick:
    """Whose noise and settings verifier rows are drawn with."""
    sequence = rows.sequence
    end = rows.start + len(rows.token_ids)
    first = end - rows.num_logits + 1 - sequence.num_prompt_tokens
    # A re-read output (pre-empted, replayed) is no draft, though it may have many logits.
    is_draft = rows.start == sequence.num_tokens - 1
    return Pick(sequence, first, rows.num_logits, rows.token_ids[1:] if is_draft else ())


def draft_pick(rows: Rows) -> Pick:
    first = rows.start + 1 - rows.sequence.num_prompt_tokens
    return Pick(rows.sequence, first, rows.num_logits, is_drafter=True)


def denoise_pick(rows: Rows) -> Pick:
    end = rows.start + len(rows.token_ids) - rows.num_tail - rows.sequence.num_prompt_tokens
    return Pick(
        rows.sequence,
        end - rows.num_logits,
        rows.num_logits,
        is_drafter=True,
        denoising_step=rows.denoising_step,
        temperature=rows.temperature,
        num_written=rows.num_written,
    )


def _spans(rows: Rows) -> list[Span]:
    """One for each piece: its rows see the same."""
    pages = rows.sequence.page_ids
    if not rows.pieces:
        return [Span(rows.token_ids, rows.start, pages)]
    spans, first = [], 0
    for piece in rows.pieces:
        own = rows.token_ids[first : first + piece.num_rows]
        spans.append(Span(own, rows.start + first, pages, piece.visible_end))
        first += piece.num_rows
    if rows.feedback is not None:
        spans[-1] = replace(spans[-1], feedback=rows.feedback)
    assert first == len(rows.token_ids), "the pieces must cover the rows"
    return spans


def _outputs(
    all_rows: Seq[Rows],
    logits: Tensor,
    tokens: Seq[list[int]],
    feedback: Tensor | None = None,
) -> list[RowsOutput]:
    lengths = [rows.num_logits for rows in all_rows]
    parts = (logits,) if len(lengths) == 1 else logits.split_with_sizes(lengths)
    told: Seq[Tensor | None] = [None] * len(lengths)
    if feedback is not None:
        told = feedback.split_with_sizes(lengths)
    outputs = []
    for rows, token_ids, part, own in zip(all_rows, tokens, parts, told, strict=True):
        rows.sequence.num_forwards += 1
        outputs.append(RowsOutput(rows, token_ids, part, feedback=own))
    return outputs
