"""Logits to tokens: o = argmax(log p~ + G), where G is a function of seed and position alone.

The Gumbel-max trick; sharing G between drafter and verifier is the coupling of Daliri et al.
(arXiv 2408.07978). Every row's result is a function of that row alone, so that neither the
batch nor the number of drafted tokens can show in the output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.decoding.noise import gumbel
from engine.decoding.noise_cache import NoiseCache
from engine.decoding.sampling_table import SamplingTable

FIRST_TOP_P_WIDTH = 256  # candidates looked at first; most distributions have their mass in these


def sample(
    logits: Tensor,
    table: SamplingTable,
    sequence_index: Tensor,
    positions: Tensor,
    noise_cache: NoiseCache | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Draw a token a row.

    logits: [R, V]; sequence_index: [R], a row's sequence in the table; positions: [R], a row's
    output position; steps: [R], its denoising step where a position is drawn for more than once
    (0, the noise of plain decoding, where there is none). Returns [R] int64. Equal maxima go
    to the lowest token id. A cache saves time on a CPU and changes nothing else.
    """
    if table.all_greedy:
        return most_likely(logits)
    if not table.any_greedy:
        return _draw(logits, table, sequence_index, positions, noise_cache, steps)
    rows = (~table.is_greedy[sequence_index]).nonzero().squeeze(1)
    token_ids = most_likely(logits)
    own_steps = None if steps is None else steps[rows]
    token_ids[rows] = _draw(
        logits[rows], table, sequence_index[rows], positions[rows], noise_cache, own_steps
    )
    return token_ids


def most_likely(scores: Tensor) -> Tensor:
    """The token with the highest score of each row, [R, V] -> [R] int64; of equals the lowest id.

    On a CPU NumPy finds it: torch looks at one element after the other, at ten times the cost.
    """
    if scores.device.type == "cpu" and scores.dtype is torch.float32:
        return torch.from_numpy(scores.numpy().argmax(-1))
    return scores.argmax(-1)


def perturbed_logits(
    logits: Tensor,
    table: SamplingTable,
    sequence_index: Tensor,
    positions: Tensor,
    noise_cache: NoiseCache | None = None,
) -> Tensor:
    """[R, V] whose maxima are the tokens of `sample`, still open to a bias: logits + T * G.

    For drafts whose tokens hang on each other. Filters judge the logits without the bias, and
    rounding may differ from `sample`'s: either can cost a draft token, never change an output.
    """
    if table.all_greedy:
        return logits
    perturbed = logits + scaled_noise(
        table, sequence_index, positions, logits.shape[-1], noise_cache
    )
    if table.any_filter:
        refused = _filtered(logits, table, sequence_index) == -torch.inf
        perturbed.masked_fill_(refused & ~table.is_greedy[sequence_index, None], -torch.inf)
    return perturbed


def scaled_noise(
    table: SamplingTable,
    sequence_index: Tensor,
    positions: Tensor,
    vocab_size: int,
    noise_cache: NoiseCache | None = None,
) -> Tensor:
    """T * G of every row, [R, V]; 0 of greedy ones."""
    temperature = table.temperature.masked_fill(table.is_greedy, 0.0)[sequence_index, None]
    return temperature * noise_rows(table, sequence_index, positions, vocab_size, noise_cache)


def processed_logprobs(
    logits: Tensor, table: SamplingTable, sequence_index: Tensor, bias: Tensor | None = None
) -> Tensor:
    """log p~: [R, V] after temperature, top-k, min-p and top-p; a greedy row is a point mass.

    A `bias` [R, V] is added as in `perturbed_logits`: the filters judge the logits without it.
    """
    scores = _filtered(logits, table, sequence_index)
    if bias is not None:
        scores = scores + bias / table.temperature[sequence_index, None]
        logits = logits + bias
    result = scores.log_softmax(-1)
    point = torch.full_like(result, -torch.inf)
    point.scatter_(1, logits.argmax(-1, keepdim=True), 0.0)
    return torch.where(table.is_greedy[sequence_index, None], point, result)


def gather_logprobs(
    logits: Tensor, token_ids: Tensor, num_top: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the raw distribution: before temperature, filters and penalties.

    Returns those of `token_ids` [R], and the `num_top` highest with their ids, [R, n] each.
    """
    logprobs = logits.float().log_softmax(-1)
    values, top_ids = logprobs.topk(num_top, dim=-1)
    return logprobs.gather(1, token_ids[:, None]).squeeze(1), values, top_ids


def _draw(
    logits: Tensor,
    table: SamplingTable,
    index: Tensor,
    positions: Tensor,
    cache: NoiseCache | None,
    steps: Tensor | None,
) -> Tensor:
    noise = noise_rows(table, index, positions, logits.shape[-1], cache, steps)
    # The normaliser of log p~ is the same for a whole row, so the argmax does not need it.
    return most_likely(_filtered(logits, table, index).add_(noise))


def noise_rows(
    table: SamplingTable,
    index: Tensor,
    positions: Tensor,
    vocab_size: int,
    cache: NoiseCache | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """The Gumbel noise of every row, [R, V]: a function of its sequence, position and step."""
    if cache is not None and steps is None:
        streams = [table.streams[i] for i in index.tolist()]
        keys = list(zip(streams, positions.tolist(), strict=True))
        return cache.rows(keys, vocab_size)
    seeds, prompts, choices = (t[index] for t in (table.seed, table.prompt_index, table.choice))
    return gumbel(seeds, prompts, choices, positions, vocab_size, steps)


def _filtered(logits: Tensor, table: SamplingTable, index: Tensor) -> Tensor:
    """log p~ up to a constant a row, float32; refused tokens are -inf. Greedy rows are undefined.

    All three filters keep what is at or above a threshold, so tokens with equal logits share
    their fate, and no order among them (which a batch could change) matters.
    """
    scaled = logits.float()
    # The maximum goes first: a small temperature then scales up no rounding error near the top.
    scaled = scaled - scaled.amax(-1, keepdim=True)
    scaled.div_(table.temperature[index, None])
    if not table.any_filter:
        return scaled
    threshold = table.min_p[index, None].log()  # the maximum is 0; log(0) refuses nothing
    if table.max_top_k:
        threshold = torch.maximum(threshold, _top_k_threshold(scaled, table, index))
    scaled.masked_fill_(scaled < threshold, -torch.inf)
    if table.any_top_p:
        # Not logsumexp: for one row it splits the sum over threads, for many it does not.
        probs = scaled.softmax(-1)
        threshold = _top_p_threshold(probs, table.top_p[index, None])
        scaled.masked_fill_(probs < threshold, -torch.inf)
    return scaled


def _top_k_threshold(scaled: Tensor, table: SamplingTable, index: Tensor) -> Tensor:
    """The k-th highest value of each row, [R, 1]; -inf where top_k is off."""
    vocab_size = scaled.shape[-1]
    top_k = table.top_k[index, None]
    width = min(table.max_top_k, vocab_size)
    rank = top_k.clamp(1, width) - 1
    lowest_kept = scaled.topk(width, dim=-1).values.gather(1, rank)
    return lowest_kept.masked_fill((top_k == 0) | (top_k >= vocab_size), -torch.inf)


def _top_p_threshold(probs: Tensor, top_p: Tensor) -> Tensor:
    """The lowest value in the smallest set of mass >= top_p (Holtzman et al. 2020), [R, 1]."""
    vocab_size = probs.shape[-1]
    # On a GPU asking whether the first width was enough would cost more than a full sort.
    width = min(FIRST_TOP_P_WIDTH, vocab_size) if probs.device.type == "cpu" else vocab_size
    while True:
        values = probs.topk(width, dim=-1).values
        mass = values.cumsum(-1)
        if width == vocab_size or bool(((mass[:, -1:] >= top_p) | (top_p >= 1.0)).all()):
            break
        width = min(8 * width, vocab_size)
    # A token is kept while the mass before it is short of top_p, so one always is.
    num_kept = 1 + (mass[:, :-1] < top_p).sum(-1, keepdim=True)
    return values.gather(1, num_kept - 1).masked_fill(top_p >= 1.0, 0.0)
