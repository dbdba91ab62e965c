"""Speculative sampling: accept with min(1, p / q), else draw from what p has more than q.

Leviathan et al., "Fast inference from Transformers via speculative decoding" (arXiv 2211.17192,
algorithm 1 and appendix A.1). The output has the verifier's distribution where each drafted token
was drawn from its own row of q, given the tokens before it alone, and where the draft's length
does not depend on what was drawn. A draft of several denoising steps is not of this kind: a token
revealed early was drawn without the later ones, and they were drawn in its light.

Rows are ragged: the drafts of all sequences lie end to end, [N], and sequence s with its k_s draft
tokens has k_s + 1 target rows, the last for the bonus.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from engine.decoding.noise import NoiseStream, gumbel, uniform
from engine.decoding.sampling_table import SamplingTable


class Verdict(NamedTuple):
    """Commit the first `num_accepted` draft tokens and then `next_token_ids`: [S] int64 each."""

    num_accepted: Tensor
    next_token_ids: Tensor


def verify_by_rejection(
    target_logprobs: Tensor,
    draft_logprobs: Tensor,
    draft: Tensor,
    lengths: Seq[int],
    table: SamplingTable,
    sequence_index: Tensor,
    first_positions: Tensor,
) -> Verdict:
    """Judge the drafts of S sequences with noise of their own seeds.

    target_logprobs: [N + S, V], log p~; draft_logprobs: [N, V], log q~, both as
    `processed_logprobs` gives them, the verifier's along the draft; draft: [N] token ids;
    lengths: S of them, sum N, zeros allowed; sequence_index: [S], a sequence's row in the table;
    first_positions: [S], the output position of its first draft token (or of its next token).
    Draft tokens must not have been drawn with the streams `ACCEPT` and `RESIDUAL`.
    """
    layout = Layout.of(lengths, draft.device)
    owner = layout.owner
    seeds, prompts = table.seed[sequence_index], table.prompt_index[sequence_index]
    choices = table.choice[sequence_index]
    uniforms = uniform(
        seeds[owner],
        prompts[owner],
        choices[owner],
        first_positions[owner] + layout.offset,
        torch.full_like(draft, NoiseStream.ACCEPT),
    )
    num_accepted = count_accepted_by_ratio(target_logprobs, draft_logprobs, draft, uniforms, layout)
    weights = residual(target_logprobs, draft_logprobs, num_accepted, layout)
    if table.all_greedy:  # one token has all the weight
        return Verdict(num_accepted, weights.argmax(-1))
    positions = first_positions + num_accepted
    steps = torch.full_like(positions, NoiseStream.RESIDUAL)
    noise = gumbel(seeds, prompts, choices, positions, weights.shape[-1], steps)
    return Verdict(num_accepted, noise.add_(weights.log_()).argmax(-1))


class Layout(NamedTuple):
    """Where the rows of each sequence lie."""

    lengths: Tensor  # [S]
    starts: Tensor  # [S], a sequence's first draft row; its first target row lies s further on
    owner: Tensor  # [N], a draft row's sequence
    offset: Tensor  # [N], its place in the draft
    longest: int

    @classmethod
    def of(cls, lengths: Seq[int], device: torch.device | str = "cpu") -> Layout:
        starts = list(accumulate(lengths, initial=0))[:-1]
        owner = [s for s, length in enumerate(lengths) for _ in range(length)]
        offset = [j for length in lengths for j in range(length)]
        sequences = torch.tensor([list(lengths), starts], dtype=torch.int64).to(device)
        rows = torch.tensor([owner, offset], dtype=torch.int64).to(device)
        return cls(sequences[0], sequences[1], rows[0], rows[1], max(lengths, default=0))


def count_accepted_by_ratio(
    target_logprobs: Tensor,
    draft_logprobs: Tensor,
    draft: Tensor,
    uniforms: Tensor,
    layout: Layout,
) -> Tensor:
    """How many leading tokens of each draft stand, [S]: each with u < p(d) / q(d).

    uniforms: [N], in (0, 1), independent of the draft and of each other.
    """
    assert len(target_logprobs) == len(draft) + len(layout.lengths), "one bonus row a sequence"
    assert len(draft_logprobs) == len(draft) == len(layout.owner), "one row for a drafted token"
    target_rows = torch.arange(len(draft), device=draft.device) + layout.owner
    p = target_logprobs[target_rows, draft]
    q = draft_logprobs.gather(1, draft[:, None]).squeeze(1)
    stands = draft.new_zeros(len(layout.lengths), layout.longest)
    stands[layout.owner, layout.offset] = (uniforms < acceptance(p, q)).long()
    return stands.cumprod(1).sum(1)


def acceptance(target_logprobs: Tensor, draft_logprobs: Tensor) -> Tensor:
    """min(1, p / q) from log-probabilities of equal shape; 0 where the verifier has p = 0."""
    ratio = (target_logprobs - draft_logprobs).exp().clamp_(max=1.0)
    return ratio.masked_fill_(target_logprobs == -torch.inf, 0.0)


def residual(
    target_logprobs: Tensor, draft_logprobs: Tensor, num_accepted: Tensor, layout: Layout
) -> Tensor:
    """Weights of the token after the accepted ones, [S, V], not normalised.

    max(p - q, 0) at the first refused token; p itself after a draft that stands as a whole.
    """
    sequences = torch.arange(len(num_accepted), device=num_accepted.device)
    weights = target_logprobs[layout.starts + sequences + num_accepted].exp_()
    if len(draft_logprobs) == 0:
        return weights
    is_refused = num_accepted < layout.lengths
    draft_rows = (layout.starts + num_accepted).clamp_(max=len(draft_logprobs) - 1)
    surplus = (weights - draft_logprobs[draft_rows].exp_()).clamp_(min=0.0)
    # Where p and q differ by rounding alone, a refusal may leave nothing; it is as rare as that.
    is_refused &= surplus.sum(-1) > 0.0
    return torch.where(is_refused[:, None], surplus, weights)


def committed_tokens(draft: Tensor, lengths: Seq[int], verdict: Verdict) -> list[list[int]]:
    """What each sequence commits, on the host: accepted draft tokens, then one more."""
    token_ids: list[int] = draft.tolist()
    counts, following = torch.stack([*verdict]).tolist()
    committed, start = [], 0
    for length, count, next_token_id in zip(lengths, counts, following, strict=True):
        committed.append([*token_ids[start : start + count], next_token_id])
        start += length
    return committed
