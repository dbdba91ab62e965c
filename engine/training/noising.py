"""Which tokens of a block are hidden for one lesson, and what each of them counts."""

from dataclasses import dataclass

import torch
from torch import Tensor

# How often a block gets each kind of noise.
ALL_MASKED, SOME_MASKED, HOLE = range(3)
KIND_SHARES = (0.35, 0.45, 0.2)
# The 1 / t of the likelihood bound lets single tokens outweigh a batch; past this it only is noise.
MAX_WEIGHT = 4.0
DEER_ALPHA = 1.02


@dataclass(frozen=True)
class Noise:
    """For blocks of N tokens: what is masked [.., N], its weight [.., N], and the kind [..]."""

    masked: Tensor
    weight: Tensor
    kind: Tensor

    def to(self, device: torch.device) -> "Noise":
        return Noise(self.masked.to(device), self.weight.to(device), self.kind.to(device))


def mixed_noise(shape: tuple[int, int], length: int) -> Noise:
    """Each block of [B, A] gets one of the three kinds: [B, A, N], at least one mask in each."""
    kind = torch.multinomial(torch.tensor(KIND_SHARES), shape[0] * shape[1], replacement=True)
    kind = kind.view(shape)
    masked = torch.ones(*shape, length, dtype=torch.bool)
    masked = torch.where((kind == SOME_MASKED)[..., None], some_masked(shape, length), masked)
    masked = torch.where((kind == HOLE)[..., None], hole(shape, length), masked)
    bound = likelihood_weight(masked)
    weight = torch.where((kind == SOME_MASKED)[..., None], bound, masked.float())
    return Noise(masked, weight, kind)


def deer_noise(shape: tuple[int, int], length: int) -> Noise:
    """Everything masked, early tokens weighing more: alpha ** (R - i) for i = 1..R.

    DEER's second stage (arXiv 2512.15176, section on Scribe refinement): a late token of a draft
    is of use only if all before it were right. The alpha is the larger of the paper's two.
    """
    masked = torch.ones(*shape, length, dtype=torch.bool)
    weight = DEER_ALPHA ** torch.arange(length - 1, -1, -1, dtype=torch.float32)
    return Noise(masked, weight.expand(masked.shape), torch.full(shape, ALL_MASKED))


def some_masked(shape: tuple[int, int], length: int) -> Tensor:
    """A uniform number of masks, 1..N, at random places -> [B, A, N].

    LLaDA (arXiv 2502.09992, equation 6) in place of its equation 3, which masks each token with
    probability t ~ U(0, 1): the same expectation, less variance, and no block without a mask.
    """
    count = torch.randint(1, length + 1, (*shape, 1))
    rank = torch.rand(*shape, length).argsort(-1).argsort(-1)
    return rank < count


def hole(shape: tuple[int, int], length: int) -> Tensor:
    """Masks from the anchor to a random place, the tail clean -> [B, A, N]: infilling."""
    count = torch.randint(1, max(2, length), (*shape, 1))
    return torch.arange(length) < count


def likelihood_weight(masked: Tensor) -> Tensor:
    """N / (number of masks) at every mask, which is LLaDA's 1 / t, clamped."""
    ratio = masked.float().mean(-1, keepdim=True)
    return masked * (1 / ratio).clamp(max=MAX_WEIGHT)
