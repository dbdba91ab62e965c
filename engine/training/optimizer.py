"""Muon for the hidden matrices, AdamW for the rest, and one learning-rate curve over both."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

WARMUP_SHARE = 0.02
DECAY_FROM_SHARE = 0.35
MUON_MOMENTUM = 0.95
# Quintic Newton-Schulz coefficients of Jordan's Muon (2024): steep at zero, stable at one.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(Optimizer):
    """Momentum, made orthogonal before it is applied.

    torch.optim.Muon works in bfloat16, matrix by matrix: several times slower than this on a CPU
    without bfloat16 units, where it would cost more than the backward pass.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for weights in by_shape.values():
                self._step_alike(weights, group["lr"], group["weight_decay"])
        return None

    def _step_alike(self, weights: list[Tensor], lr: float, weight_decay: float) -> None:
        updates = orthogonal(torch.stack([self._nesterov(w) for w in weights]))
        # A tall matrix has more rows to share the unit of change that Muon gives.
        scale = max(1.0, weights[0].shape[0] / weights[0].shape[1]) ** 0.5
        for weight, update in zip(weights, updates, strict=True):
            weight.mul_(1 - lr * weight_decay).add_(update.to(weight.dtype), alpha=-lr * scale)

    def _nesterov(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        assert weight.grad is not None
        state["momentum"].lerp_(weight.grad, 1 - MUON_MOMENTUM)
        return weight.grad.lerp(state["momentum"], MUON_MOMENTUM)


def orthogonal(matrices: Tensor) -> Tensor:
    """[M, R, C] -> about the nearest matrices whose singular values are all 1."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class OptimizerPair:
    """Both optimizers behind one `step`."""

    def __init__(self, model: nn.Module, muon_lr: float, adam_lr: float) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        hidden = [p for n, p in named if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
        chosen = set(map(id, hidden))
        rest = [p for _, p in named if id(p) not in chosen]
        self.parts: list[Optimizer] = [
            Muon(hidden, muon_lr, weight_decay=0.01),
            AdamW(rest, adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self._peaks = [muon_lr, adam_lr]

    def step(self, share: float) -> None:
        """Apply the gradients, at the learning rate of this share of the training."""
        for part, peak in zip(self.parts, self._peaks, strict=True):
            for group in part.param_groups:
                group["lr"] = peak * learning_rate_factor(share)
            part.step()
            part.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def learning_rate_factor(share: float) -> float:
    """Short warm-up, a plateau, then a straight line down to zero."""
    if share < WARMUP_SHARE:
        return (share + 1e-3) / (WARMUP_SHARE + 1e-3)
    if share < DECAY_FROM_SHARE:
        return 1.0
    return max(0.0, (1 - share) / (1 - DECAY_FROM_SHARE))
