"""Draws tokens for many rows of many sequences at once, each with its own settings and noise."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from engine.decoding.logit_processors import apply_processors, needs_processing
from engine.decoding.noise_cache import NoiseCache
from engine.decoding.rejection import committed_tokens, verify_by_rejection
from engine.decoding.sampler import (
    gather_logprobs,
    perturbed_logits,
    processed_logprobs,
    sample,
)
from engine.decoding.sampling_table import Entry, SamplingTable
from engine.models.grammar_rows import apply_grammars, draft_grammar, no_bias, within_grammars
from engine.models.pick import Pick
from engine.request.outputs import TokenLogprobs
from engine.request.tokenizer import Tokenizer

_MAX_TABLES = 64  # batches that are remembered; a running one keeps its own for many steps


class _KnownTable(NamedTuple):
    """A table, and what it was made of: the key's ids are of these objects while they live."""

    entries: list[Entry]
    table: SamplingTable


class TokenSampler:
    """Logits in, token ids out; remembers the sampling table of an unchanged batch."""

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._device = device
        # A row of noise is wanted by drafter and verifier; on a GPU a look-up costs more than it.
        self._noise_cache = NoiseCache() if device.type == "cpu" else None
        self._tables: dict[tuple[tuple[int, int, int], ...], _KnownTable] = {}

    def sample(self, logits: Tensor, picks: Seq[Pick]) -> list[list[int]]:
        """logits: [R, V], the rows of all picks in order -> the tokens of each pick."""
        return self.draw(self.process(logits, picks), picks)

    def draw(self, logits: Tensor, picks: Seq[Pick]) -> list[list[int]]:
        """As `sample`, from logits that have been through `process`."""
        index, positions = self._rows(picks)
        steps = self._steps(picks)
        drawn = sample(logits, self._table(picks), index, positions, self._noise_cache, steps)
        return self._follow_grammars(logits, picks, _split(drawn, picks))

    def _follow_grammars(
        self, logits: Tensor, picks: Seq[Pick], tokens: list[list[int]]
    ) -> list[list[int]]:
        """The tokens, those of drafts within a grammar drawn anew, one in the light of another."""
        start = 0
        for number, pick in enumerate(picks):
            if draft_grammar(pick) is not None:
                own = logits[start : start + pick.count]
                tokens[number] = self._chain(own, [pick], [0], no_bias)[0]
            start += pick.count
        return tokens

    def distribution(self, logits: Tensor, picks: Seq[Pick], bias: Tensor | None = None) -> Tensor:
        """log p~ of every row, [R, V]: what `sample` draws from; a greedy row is a point mass.

        With the `bias` of each row, [R, V], what `sample_chained` draws from.
        """
        index, _ = self._rows(picks)
        return processed_logprobs(self.process(logits, picks), self._table(picks), index, bias)

    def verify_by_rejection(
        self,
        target_logprobs: Tensor,
        draft_logprobs: Tensor,
        drafts: Seq[Seq[int]],
        picks: Seq[Pick],
    ) -> list[list[int]]:
        """What stands of each draft by the rule of p / q, and the token after it.

        target_logprobs: [N + S, V], the verifier's `distribution` for the S picks; draft_logprobs:
        [N, V], what the N draft tokens were drawn from.
        """
        token_ids = [token_id for draft in drafts for token_id in draft]
        drafted = torch.tensor(token_ids, dtype=torch.int64).to(self._device)
        lengths = [len(draft) for draft in drafts]
        index = torch.arange(len(picks)).to(self._device)
        positions = torch.tensor([pick.first_position for pick in picks]).to(self._device)
        verdict = verify_by_rejection(
            target_logprobs, draft_logprobs, drafted, lengths, self._table(picks), index, positions
        )
        return committed_tokens(drafted, lengths, verdict)

    def sample_chained(
        self, logits: Tensor, picks: Seq[Pick], anchors: Seq[int], bias: Callable[[Tensor], Tensor]
    ) -> list[list[int]]:
        """Like `sample`, but each token of a pick is drawn in the light of the one before it.

        `bias` maps the tokens before, [N], to what they add to the logits of the next, [N, V];
        `anchors` are the tokens before each pick's first.
        """
        return self._chain(self.process(logits, picks), picks, anchors, bias)

    def _chain(
        self, logits: Tensor, picks: Seq[Pick], anchors: Seq[int], bias: Callable[[Tensor], Tensor]
    ) -> list[list[int]]:
        index, positions = self._rows(picks)
        table = self._table(picks)
        scores = perturbed_logits(logits, table, index, positions, self._noise_cache)
        starts = list(accumulate((pick.count for pick in picks), initial=0))
        alive = list(range(len(picks)))
        previous = torch.tensor(list(anchors), device=self._device)
        order: list[int] = []
        drawn: list[Tensor] = []
        for number in range(max(pick.count for pick in picks)):
            kept = [place for place, i in enumerate(alive) if picks[i].count > number]
            if len(kept) < len(alive):
                alive = [alive[place] for place in kept]
                previous = previous[torch.tensor(kept).to(self._device)]
            rows = [starts[i] + number for i in alive]
            own = scores[torch.tensor(rows).to(self._device)]
            own = own + bias(previous)
            previous = within_grammars(own, own.argmax(-1), [picks[i] for i in alive])
            order += rows
            drawn.append(previous)
        for pick in picks:
            if (grammar := draft_grammar(pick)) is not None:
                grammar.rewind()
        # Only now, once for all, the device is waited for (where no grammar had to be asked).
        tokens = dict(zip(order, torch.cat(drawn).tolist(), strict=True))
        return [[tokens[row] for row in range(*span)] for span in pairwise(starts)]

    def chained_logits(
        self,
        logits: Tensor,
        anchors: Seq[int],
        drawn: Seq[Seq[int]],
        bias: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """What `sample_chained` drew `drawn` from, before noise and processing: [R, V]."""
        before = [
            i for anchor, own in zip(anchors, drawn, strict=True) for i in (anchor, *own)[:-1]
        ]
        return logits + bias(torch.tensor(before).to(self._device))

    def leads(self, logits: Tensor, picks: Seq[Pick]) -> Tensor:
        """By how much each row's drawn token is ahead of the next, noise included: [R].

        In logits over the temperature, so that noise weighs the same at any; a greedy row's are
        plain logits. A model whose logits differ by less draws the same token.
        """
        index, positions = self._rows(picks)
        table = self._table(picks)
        logits = self.process(logits, picks)
        scores = perturbed_logits(logits, table, index, positions, self._noise_cache)
        first, second = scores.float().topk(2, dim=-1).values.unbind(-1)
        scale = table.temperature.masked_fill(table.is_greedy, 1.0)[index]
        return (first - second) / scale

    def logprobs(self, logits: Tensor, token_ids: Seq[int], num_top: int) -> list[TokenLogprobs]:
        """logits: [n, V] before any processing, one row for each of the n tokens."""
        chosen = torch.tensor(list(token_ids), dtype=torch.int64).to(self._device)
        values, top_values, top_ids = gather_logprobs(logits, chosen, num_top)
        name = self._tokenizer.token_bytes
        return [
            TokenLogprobs(
                token_id,
                name(token_id),
                value,
                tuple((i, name(i), v) for i, v in zip(ids, tops, strict=True)),
            )
            for token_id, value, ids, tops in zip(
                token_ids, values.tolist(), top_ids.tolist(), top_values.tolist(), strict=True
            )
        ]

    def unconditional(self, token_id: int) -> TokenLogprobs:
        """The first prompt token: nothing came before it, so it has no probability."""
        return TokenLogprobs(token_id, self._tokenizer.token_bytes(token_id), None)

    def _rows(self, picks: Seq[Pick]) -> tuple[Tensor, Tensor]:
        """Of every row the index of its pick, and its output position: [R] each."""
        owners = [i for i, pick in enumerate(picks) for _ in range(pick.count)]
        positions = [
            max(position, 0)  # prompt rows are drawn for nobody
            for pick in picks
            for position in range(pick.first_position, pick.first_position + pick.count)
        ]
        rows = torch.tensor([owners, positions], dtype=torch.int64).to(self._device)
        return rows[0], rows[1]

    def _steps(self, picks: Seq[Pick]) -> Tensor | None:
        """Of every row its denoising step, [R]; None where all are 0."""
        if not any(pick.denoising_step for pick in picks):
            return None
        steps = [pick.denoising_step for pick in picks for _ in range(pick.count)]
        return torch.tensor(steps).to(self._device)

    def _table(self, picks: Seq[Pick]) -> SamplingTable:
        entries = [(p.sequence.params, p.sequence.prompt_index, p.sequence.choice) for p in picks]
        key = tuple((id(params), prompt, choice) for params, prompt, choice in entries)
        known = self._tables.get(key)
        if known is None:
            if len(self._tables) > _MAX_TABLES:
                self._tables.clear()
            table = SamplingTable.build(entries, self._device)
            known = self._tables[key] = _KnownTable(entries, table)
        return known.table

    def process(self, logits: Tensor, picks: Seq[Pick]) -> Tensor:
        """Penalties, biases and bans along each pick's hypothetical prefix; copies if there are.

        Then the picks' own temperatures; those of the requests are left to the drawing.
        """
        if not any(map(_needs_processing, picks)):
            return logits
        logits = logits.float().clone()
        start = 0
        for pick in picks:
            sequence = pick.sequence
            if _needs_processing(pick):
                first = 0 if pick.is_drafter else pick.count - 1 - len(pick.draft)
                apply_processors(
                    logits[start + first : start + pick.count],
                    sequence.params,
                    sequence.prompt_token_ids,
                    pick.output_token_ids,
                    pick.draft,
                    self._tokenizer.eos_token_ids | set(sequence.params.stop_token_ids),
                    pick.first_position if pick.is_drafter else None,
                )
            if pick.temperature != 1.0:
                logits[start : start + pick.count] /= pick.temperature
            start += pick.count
        apply_grammars(logits, picks)
        return logits


def _split(drawn: Tensor, picks: Seq[Pick]) -> list[list[int]]:
    token_ids: list[int] = drawn.tolist()
    tokens, start = [], 0
    for pick in picks:
        tokens.append(token_ids[start : start + pick.count])
        start += pick.count
    return tokens


def _num_written(pick: Pick) -> int:
    return pick.sequence.num_output_tokens if pick.num_written is None else pick.num_written


def _needs_processing(pick: Pick) -> bool:
    # A chunk of a prompt may have no row: the row before it is another sequence's.
    sequence = pick.sequence
    has_own = sequence.grammar is not None or pick.temperature != 1.0
    return pick.count > 0 and (has_own or needs_processing(sequence.params, _num_written(pick)))
