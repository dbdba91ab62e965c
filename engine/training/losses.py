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


def position_weights(num_masks: int, decay: float = 4.0) -> Tensor:
    """exp(-(k - 1) / decay) for k = 1..: a late position counts only if all before it held."""
    return torch.exp(-torch.arange(num_masks, dtype=torch.float32) / decay)
