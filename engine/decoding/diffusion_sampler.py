"""Which masks of a block are revealed in a denoising step.

The schedule and low-confidence remasking of LLaDA (Nie et al., arXiv 2502.09992, section 2.4), the
threshold and factor rules of Fast-dLLM (Wu et al., arXiv 2505.22618, section 3.3), entropy and
margin as orders (Dream, arXiv 2508.15487). All of them say how many and which; what a revealed mask
becomes was drawn before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.request.errors import InvalidRequestError
from engine.request.options import GenerationOptions, Remasking


@dataclass(frozen=True, slots=True)
class DiffusionSampler:
    """Chooses the masks to reveal: the surest first, as many as the rules together allow.

    Each rule gives a number, the largest counts, and it is never below one: `num_steps` the share
    that is due, so that a block ends in time; `threshold` all at least so sure; `factor` f the
    largest n with (n + 1)(1 - c_n) < f, c_n being the n-th highest confidence. Without any of them
    one mask a step is revealed.
    """

    remasking: Remasking = Remasking.LOW_CONFIDENCE
    num_steps: int | None = None
    threshold: float | None = None
    factor: float | None = None

    def __post_init__(self) -> None:
        """Raise `InvalidRequestError` for rules that contradict each other."""
        if self.threshold is not None and self.factor is not None:
            message = "confidence_threshold and unmasking_factor exclude each other"
            raise InvalidRequestError(message, "unmasking_factor")
        if self.remasking is Remasking.RANDOM and not (
            self.threshold is None and self.factor is None
        ):
            message = "remasking random knows no confidence to hold against a threshold or factor"
            raise InvalidRequestError(message, "remasking")

    @classmethod
    def of(cls, options: GenerationOptions) -> DiffusionSampler:
        return cls(
            options.remasking,
            options.denoising_steps,
            options.confidence_threshold,
            options.unmasking_factor,
        )

    def __call__(
        self,
        logits: Tensor,
        token_ids: Tensor,
        num_masks: Seq[int],
        steps_done: Seq[int] = (),
        noise: Tensor | None = None,
    ) -> Tensor:
        """What to reveal now, [N] bool, for the masks of one or more sequences laid end to end.

        logits: [N, V] of the masks, before temperature and filters; token_ids: [N], what was drawn
        for them; num_masks: how many of the N each sequence has; steps_done: its denoising steps
        before this one, needed with `num_steps`; noise: [N], any numbers for the order of `RANDOM`.
        Equal confidences go from left to right.
        """
        assert len(logits) == len(token_ids) == sum(num_masks), "every mask is some sequence's"
        confidences = self.confidence(logits, token_ids, noise)
        due = [1] * len(num_masks)
        if self.num_steps is not None:
            left = (self.num_steps - done for done in steps_done)
            due = [num_due(n, s) for n, s in zip(num_masks, left, strict=True)]
        parts = torch.split(confidences, list(num_masks))
        masks = [self._revealed(part, n) for part, n in zip(parts, due, strict=True)]
        return torch.cat(masks) if masks else token_ids.new_empty(0, dtype=torch.bool)

    def confidence(self, logits: Tensor, token_ids: Tensor, noise: Tensor | None = None) -> Tensor:
        """How sure the model is of each row, [N] in [0, 1]; for `RANDOM` the noise itself.

        `LOW_CONFIDENCE`: probability of the drawn token, as LLaDA has it. `ENTROPY`: 1 - H / log V,
        1 where one token has everything. `MARGIN`: probability of the first token less that of the
        second. A threshold or factor is held against these same numbers.
        """
        if self.remasking is Remasking.RANDOM:
            assert noise is not None, "a random order needs noise"
            return noise
        if self.remasking is Remasking.LOW_CONFIDENCE:
            chosen = logits.gather(1, token_ids[:, None]).squeeze(1).float()
            return (chosen - logits.float().logsumexp(-1)).exp()
        probs = logits.float().softmax(-1)
        if self.remasking is Remasking.MARGIN:
            first, second = probs.topk(2, dim=-1).values.unbind(-1)
            return first - second
        entropy: Tensor = torch.special.entr(probs).sum(-1)
        # A uniform row's quotient may round to just above 1.
        return (1.0 - entropy / math.log(probs.shape[-1])).clamp_(min=0.0)

    def _revealed(self, confidences: Tensor, num_due: int) -> Tensor:
        """confidences: [n] of one sequence -> [n] bool."""
        ranked, order = confidences.sort(descending=True, stable=True)
        ranks = torch.arange(len(ranked), device=ranked.device)
        revealed = ranks < num_due
        if self.threshold is not None:
            revealed |= ranked >= self.threshold
        if self.factor is not None:
            # Rises with n, so that the masks for which it holds are the first ones.
            revealed |= (ranks + 2) * (1.0 - ranked) < self.factor
        return torch.empty_like(revealed).scatter_(0, order, revealed)


def num_due(num_masks: int, num_steps_left: int) -> int:
    """How many masks the linear schedule reveals now: at least one, all in the last step.

    Asked with what is left each time, it is LLaDA's `get_num_transfer_tokens`: n masks over s
    steps, the first n mod s steps taking one more; and it forgives steps that revealed more.
    """
    return max(1, -(-num_masks // max(1, num_steps_left)))
