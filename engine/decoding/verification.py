"""How much of a draft the verifier would have written itself.

The coupled rule of Daliri et al., "Coupling without communication and drafter-invariant
speculative decoding" (arXiv 2408.07978, section 4): drafter and verifier take the argmax of
their own log-probabilities plus the same Gumbel noise, and a draft stands while both agree. At
the first difference the verifier's token is the sample, so there is no residual to draw from, as
there is in Leviathan et al. (arXiv 2211.17192, algorithm 1), and the output is that of the
verifier alone, token for token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def count_accepted(draft: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
    """Length of the longest prefix of each draft that equals the verifier's own tokens.

    draft, target: [S, k] token ids, target[s, j] being what the verifier draws where draft[s, j]
    stands; lengths: [S], how many of the k are drafted (what follows is padding). Returns [S].
    Each row counts for itself; commit target[s, : accepted + 1], the last being the bonus.
    """
    assert draft.shape == target.shape, "one verifier token for every drafted token"
    drafted = torch.arange(draft.shape[1], device=draft.device) < lengths[:, None]
    return ((draft == target) & drafted).long().cumprod(1).sum(1)


def count_accepted_ragged(draft: Tensor, target: Tensor, lengths: Sequence[int]) -> list[int]:
    """`count_accepted` for drafts laid end to end: draft, target [sum(lengths)]."""
    matches = (draft == target).tolist()
    accepted, start = [], 0
    for length in lengths:
        row = matches[start : start + length]
        accepted.append(row.index(False) if False in row else length)
        start += length
    assert start == len(matches), "the lengths must cover the drafts"
    return accepted


def count_accepted_unless_sure(
    draft: Sequence[int], target: Sequence[int], confidences: Sequence[float], sure: float
) -> int:
    """`count_accepted_prefix`, but a token with a confidence of `sure` or more always stands.

    Lossy. confidences: of each draft token, in [0, 1], or of more.
    """
    for index, token_id in enumerate(draft):
        if token_id != target[index] and confidences[index] < sure:
            return index
    return len(draft)


def count_accepted_prefix(draft: Sequence[int], target: Sequence[int]) -> int:
    """`count_accepted` of one draft, where the tokens have left the device already."""
    for index, token_id in enumerate(draft):
        if token_id != target[index]:
            return index
    return len(draft)
