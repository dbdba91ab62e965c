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


def count_accepted_prefix(draft: Sequence[int], target: Sequence[int]) -> int:
    """Length of the longest prefix of a draft that equals the verifier's own tokens.

    target[j] is what the verifier draws where draft[j] stands, draft[: j] being true; it may be
    longer. Commit target[: accepted + 1], the last being the correction or the bonus.
    """
    for index, token_id in enumerate(draft):
        if token_id != target[index]:
            return index
    return len(draft)


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
