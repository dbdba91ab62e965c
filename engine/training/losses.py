"""What the drafter is trained on, by name: [M, V] logits of both models in, a loss a row out."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# (drafter's logits [M, V], verifier's logits [M, V], next tokens [M]) -> loss of each row [M]
RowLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def hard_cross_entropy(draft: Tensor, target: Tensor, token_ids: Tensor) -> Tensor:
    """Against the token that stands there: the greedy case."""
    return F.cross_entropy(draft, token_ids, reduction="none")


def soft_cross_entropy(draft: Tensor, target: Tensor, token_ids: Tensor) -> Tensor:
    """Against the verifier's whole distribution: less noise than one token of it."""
    return -(target.softmax(-1) * draft.log_softmax(-1)).sum(-1)


def total_variation(draft: Tensor, target: Tensor, token_ids: Tensor) -> Tensor:
    """0.1 cross-entropy + 0.9 total variation, which is what sampling loses by a draft."""
    log_q = draft.log_softmax(-1)
    p = target.softmax(-1)
    distance = 0.5 * (p - log_q.exp()).abs().sum(-1)
    return 0.9 * distance - 0.1 * (p * log_q).sum(-1)


LOSSES: dict[str, RowLoss] = {
    "hard": hard_cross_entropy,
    "soft": soft_cross_entropy,
    "tv": total_variation,
}

# (verifier's tokens' probabilities under the drafter [..., M], which of them count) -> [..., M]
PositionWeights = Callable[[Tensor, Tensor], Tensor]


def decaying_weights(token_probs: Tensor, held: Tensor) -> Tensor:
    """exp(-(k - 1) / decay) for mask k = 1..M: a late one counts only if all before it held.

    DFlash (arXiv 2602.06036) decays by 7 in blocks of 16 and by 4 in blocks of 8.
    """
    num_masks = held.shape[-1]
    decay = (num_masks + 1) / 2
    at = torch.arange(num_masks, dtype=torch.float32, device=held.device)
    return torch.exp(-at / decay) * held


def survival_weights(token_probs: Tensor, held: Tensor) -> Tensor:
    """D-PACE (arXiv 2605.18810): how much of the expected accepted length hangs on each mask.

    Mask k weighs the sum over m >= k of the smoothed chances that all masks up to m hold; the
    smoothing, (1 - a) q + a with a = 0.5, keeps the late masks of a young drafter alive.
    """
    smoothed = (0.5 * token_probs + 0.5) * held
    return smoothed.cumprod(-1).flip(-1).cumsum(-1).flip(-1) * held


POSITION_WEIGHTS: dict[str, PositionWeights] = {
    "decay": decaying_weights,
    "dpace": survival_weights,
}


def confidence_loss(log_odds: Tensor, draft: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy [M] against 1 - TV(p, q), the best chance of acceptance (DSpark)."""
    distance = 0.5 * (target.softmax(-1) - draft.softmax(-1)).abs().sum(-1)
    return F.binary_cross_entropy_with_logits(log_odds, 1 - distance, reduction="none")
