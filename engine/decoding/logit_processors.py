"""Penalties, bias and minimum length, evaluated along the prefix that a draft supposes.

Row j of a sequence's logits follows prompt + output + draft[:j]. Rows after the first rejected
token saw a prefix that never came to be, and are thrown away with it, so the rule stays exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from engine.request.errors import InvalidRequestError
from engine.request.sampling_params import SamplingParams

TokenIds = Sequence[int] | Tensor


def needs_processing(params: SamplingParams, num_output_tokens: int = 0) -> bool:
    """Whether `apply_processors` would change anything for a sequence of this length."""
    has_bias = bool(params.logit_bias)
    return has_bias or params.has_penalties or num_output_tokens < params.min_tokens


def check_vocab(params: SamplingParams, vocab_size: int) -> None:
    """Refuse token ids that the model does not have."""
    _check_ids("logit_bias", params.logit_bias, vocab_size)
    _check_ids("stop_token_ids", params.stop_token_ids, vocab_size)


def apply_processors(
    logits: Tensor,
    params: SamplingParams,
    prompt_token_ids: TokenIds,
    output_token_ids: TokenIds,
    draft_token_ids: TokenIds,
    forbidden_until_min_tokens: Iterable[int] = (),
    first_position: int | None = None,
) -> Tensor:
    """Change logits [k + 1, V] of one sequence in place, and return them.

    Penalties come first, so that the bias that follows is exactly what the request says. A
    drafter that has fewer rows than draft tokens + 1 passes the rows it has. `first_position` is
    the output position of the first row, where that is not just after the output: in a canvas.
    """
    draft = _as_ids(draft_token_ids, logits.device)[: len(logits) - 1]
    if params.has_penalties:
        output = _as_ids(output_token_ids, logits.device)
        if params.repetition_penalty != 1.0:
            prompt = _as_ids(prompt_token_ids, logits.device)
            _repetition_penalty_(logits, params, torch.cat([prompt, output]), draft)
        _additive_penalties_(logits, params, output, draft)
    if params.logit_bias:
        ids = _as_ids(list(params.logit_bias), logits.device)
        bias = torch.tensor(list(params.logit_bias.values()), device=logits.device)
        logits[:, ids] += bias.to(logits.dtype)
    first = len(output_token_ids) if first_position is None else first_position
    num_short = params.min_tokens - first
    if num_short > 0:
        ids = _as_ids(list(forbidden_until_min_tokens), logits.device)
        logits[:num_short, ids] = -torch.inf
    return logits


def _repetition_penalty_(
    logits: Tensor, params: SamplingParams, seen: Tensor, draft: Tensor
) -> None:
    """Hugging Face's rule (Keskar et al., arXiv 1909.05858, 4.1): prompt and output alike."""
    ids, counts = _prefix_counts(seen, draft, len(logits))
    values = logits[:, ids]
    penalty = params.repetition_penalty
    penalized = torch.where(values > 0, values / penalty, values * penalty)
    logits[:, ids] = torch.where(counts > 0, penalized, values)


def _additive_penalties_(
    logits: Tensor, params: SamplingParams, output: Tensor, draft: Tensor
) -> None:
    """OpenAI's rule: c * frequency + (c > 0) * presence, c counting in the output only."""
    if params.presence_penalty == 0.0 and params.frequency_penalty == 0.0:
        return
    ids, counts = _prefix_counts(output, draft, len(logits))
    penalty = counts * params.frequency_penalty + (counts > 0) * params.presence_penalty
    logits[:, ids] -= penalty.to(logits.dtype)


def _prefix_counts(seen: Tensor, draft: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Distinct ids [U], and how often each stands before row j, [num_rows, U].

    Only the ids that occur are kept: a vocabulary is far wider than what a text uses of it.
    """
    ids, place = torch.unique(torch.cat([seen, draft]), return_inverse=True)
    before, drafted = place[: len(seen)], place[len(seen) :]
    counts = torch.zeros(num_rows, len(ids), dtype=torch.int64, device=ids.device)
    counts[0] = torch.bincount(before, minlength=len(ids))
    rows = torch.arange(1, len(drafted) + 1, device=ids.device)
    counts[rows, drafted] += 1  # one id a row, so no place is added to twice
    return ids, counts.cumsum(0)


def _as_ids(token_ids: TokenIds, device: torch.device) -> Tensor:
    return torch.as_tensor(token_ids, dtype=torch.int64, device=device)


def _check_ids(param: str, token_ids: Iterable[int], vocab_size: int) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            message = f"{param}: token id {token_id} is not in the vocabulary of {vocab_size}"
            raise InvalidRequestError(message, param=param)
