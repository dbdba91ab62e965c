"""Draws tokens for many rows of many sequences at once, each with its own settings and noise."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.decoding.logit_processors import apply_processors, needs_processing
from engine.decoding.noise import gumbel
from engine.decoding.noise_cache import Gumbel, NoiseCache
from engine.decoding.rejection import committed_tokens, verify_by_rejection
from engine.decoding.sampler import (
    gather_logprobs,
    most_likely,
    perturbed_logits,
    processed_logprobs,
    sample,
)
from engine.decoding.sampling_table import SamplingTable
from engine.models.chain_order import ChainOrder
from engine.models.grammar_rows import apply_grammars, draft_grammar, no_bias, within_grammars
from engine.models.pick import Pick
from engine.models.sampled_batches import SampledBatches
from engine.request.outputs import TokenLogprobs
from engine.request.tokenizer import Tokenizer

if TYPE_CHECKING:
    from engine.models.cpu.draws import KernelDraws
    from engine.models.cpu.sampling import Draws

# (scores [R, V], rows of each draft, the token before each) -> the tokens of each draft
Chain = Callable[[Tensor, Seq[int], Seq[int]], list[list[int]]]


class TokenSampler:
    """Logits in, token ids out."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        device: torch.device,
        make_noise: Gumbel = gumbel,
        kernels: KernelDraws | None = None,
    ) -> None:
        """For CPUs: `make_noise` is `gumbel`, or what gives the same sooner; `kernels` draw."""
        self._tokenizer = tokenizer
        self._device = device
        self._kernels = kernels
        # A row of noise is wanted by drafter and verifier; on a GPU a look-up costs more than it.
        self._noise_cache = NoiseCache(make=make_noise) if device.type == "cpu" else None
        self._batches = SampledBatches(device, kernels)

    def sample(self, logits: Tensor, picks: Seq[Pick]) -> list[list[int]]:
        """logits: [R, V], the rows of all picks in order -> the tokens of each pick."""
        return self.draw(self.process(logits, picks), picks)

    def draw(self, logits: Tensor, picks: Seq[Pick]) -> list[list[int]]:
        """As `sample`, from logits that have been through `process`."""
        _, table, settings, is_plain = self._batches.of(picks)
        if self._kernels is not None:
            assert settings is not None
            tokens = self._kernels.draw(logits, settings, picks)
            return tokens if is_plain else self._follow_grammars(logits, picks, tokens)
        if table.all_greedy:
            drawn = most_likely(logits)
        else:
            index, positions = self._rows(picks)
            steps = self._steps(picks)
            drawn = sample(logits, table, index, positions, self._noise_cache, steps)
        tokens = _split(drawn, picks)
        return tokens if is_plain else self._follow_grammars(logits, picks, tokens)

    def _follow_grammars(
        self, logits: Tensor, picks: Seq[Pick], tokens: list[list[int]]
    ) -> list[list[int]]:
        """The tokens, those of drafts within a grammar drawn anew, one in the light of another."""
        start = 0
        for number, pick in enumerate(picks):
            if draft_grammar(pick) is not None:
                own = logits[start : start + pick.num_rows]
                tokens[number] = self._chain(own, [pick], [0], no_bias)[0]
            start += pick.num_rows
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
        self,
        logits: Tensor,
        picks: Seq[Pick],
        anchors: Seq[int],
        bias: Callable[[Tensor], Tensor],
        chain: Chain | None = None,
    ) -> list[list[int]]:
        """Like `sample`, but each token of a pick is drawn in the light of the one before it.

        `bias` maps the tokens before, [N], to what they add to the next logits, [N, V]; `anchors`
        are those before each pick's first. `chain` does it in one call, where no grammar is asked.
        """
        logits = self.process(logits, picks)
        if chain is not None and not any(map(draft_grammar, picks)):
            return chain(self._perturbed(logits, picks), [p.num_rows for p in picks], anchors)
        return self._chain(logits, picks, anchors, bias)

    def plan(self, picks: Seq[Pick], vocab_size: int) -> Draws | None:
        """How a forward's kernel is to draw the tokens of its own logits.

        None where there is none, or processors must see the logits before.
        """
        _, _, settings, is_plain = self._batches.of(picks)
        if self._kernels is None or settings is None or not is_plain:
            return None
        return self._kernels.plan(settings, picks, vocab_size)

    def drawn(self, draws: Draws) -> list[list[int]]:
        """The tokens of each pick, which a forward has drawn."""
        assert self._kernels is not None
        return self._kernels.drawn(draws)

    def _chain(
        self, logits: Tensor, picks: Seq[Pick], anchors: Seq[int], bias: Callable[[Tensor], Tensor]
    ) -> list[list[int]]:
        order = ChainOrder.of([pick.num_rows for pick in picks])
        scores = self._perturbed(logits, picks)
        if len(picks) > 1:
            scores = scores.index_select(0, torch.tensor(order.rows).to(self._device))
        previous = torch.tensor([anchors[i] for i in order.drafts], device=self._device)
        grammars = [grammar for pick in picks if (grammar := draft_grammar(pick)) is not None]
        drawn: list[Tensor] = []
        for own in scores.split_with_sizes(order.widths):
            own = own + bias(previous[: len(own)])
            previous = most_likely(own)
            if grammars:
                alive = [picks[i] for i in order.drafts[: len(own)]]
                previous = within_grammars(own, previous, alive)
            drawn.append(previous)
        for grammar in grammars:
            grammar.rewind()
        # Only now, once for all, the device is waited for (where no grammar had to be asked).
        return order.by_draft(torch.cat(drawn).tolist())

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
        scores = self._perturbed(self.process(logits, picks), picks)
        first, second = scores.float().topk(2, dim=-1).values.unbind(-1)
        table, (index, _) = self._table(picks), self._rows(picks)
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

    def _perturbed(self, logits: Tensor, picks: Seq[Pick]) -> Tensor:
        """logits + T * G, [R, V], a copy unless all are greedy: what tokens are the maxima of."""
        table = self._table(picks)
        if table.all_greedy:
            return logits
        index, positions = self._rows(picks)
        return perturbed_logits(logits, table, index, positions, self._noise_cache)

    def _rows(self, picks: Seq[Pick]) -> tuple[Tensor, Tensor]:
        """Of every row the index of its pick, and its output position: [R] each."""
        owners = [i for i, pick in enumerate(picks) for _ in range(pick.num_rows)]
        positions = [
            max(position, 0)  # prompt rows are drawn for nobody
            for pick in picks
            for position in range(pick.first_position, pick.first_position + pick.num_rows)
        ]
        rows = torch.tensor([owners, positions], dtype=torch.int64).to(self._device)
        return rows[0], rows[1]

    def _steps(self, picks: Seq[Pick]) -> Tensor | None:
        """Of every row its denoising step, [R]; None where all are 0."""
        if not any(pick.denoising_step for pick in picks):
            return None
        steps = [pick.denoising_step for pick in picks for _ in range(pick.num_rows)]
        return torch.tensor(steps).to(self._device)

    def _table(self, picks: Seq[Pick]) -> SamplingTable:
        return self._batches.of(picks).table

    def process(self, logits: Tensor, picks: Seq[Pick]) -> Tensor:
        """Penalties, biases and bans along each pick's hypothetical prefix; copies if there are.

        Then the picks' own temperatures; those of the requests are left to the drawing.
        """
        is_plain = self._batches.of(picks).is_plain and all(
            pick.temperature == 1.0 for pick in picks
        )
        if is_plain or not any(map(_needs_processing, picks)):
            return logits
        logits = logits.float().clone()
        start = 0
        for pick in picks:
            sequence = pick.sequence
            if _needs_processing(pick):
                first = 0 if pick.is_drafter else pick.num_rows - 1 - len(pick.draft)
                apply_processors(
                    logits[start + first : start + pick.num_rows],
                    sequence.params,
                    sequence.prompt_token_ids,
                    pick.output_token_ids,
                    pick.draft,
                    self._tokenizer.eos_token_ids | set(sequence.params.stop_token_ids),
                    pick.first_position if pick.is_drafter else None,
                )
            if pick.temperature != 1.0:
                logits[start : start + pick.num_rows] /= pick.temperature
            start += pick.num_rows
        apply_grammars(logits, picks)
        return logits


def _split(drawn: Tensor, picks: Seq[Pick]) -> list[list[int]]:
    token_ids: list[int] = drawn.tolist()
    tokens, start = [], 0
    for pick in picks:
        tokens.append(token_ids[start : start + pick.num_rows])
        start += pick.num_rows
    return tokens


def _needs_processing(pick: Pick) -> bool:
    # A chunk of a prompt may have no row: the row before it is another sequence's.
    params = pick.sequence.params
    has_own = pick.sequence.grammar is not None or pick.temperature != 1.0
    return pick.num_rows > 0 and (has_own or needs_processing(params, pick.num_written_tokens))
