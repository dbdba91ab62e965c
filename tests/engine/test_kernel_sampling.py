"""Kernels draw the tokens that torch draws, but where rounding alone decides."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.decoding.noise import gumbel
from engine.decoding.sampler import processed_logprobs, sample
from engine.decoding.sampling_table import SamplingTable
from engine.models.cpu import draft_noise
from engine.models.cpu.draws import KernelDraws
from engine.models.cpu.sampling import Draws, draw_tokens
from engine.models.pick import Pick
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence
from tests.engine.kernel_entries import entry

add_noise = entry(draft_noise.add_noise)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 1e-40},
    {"temperature": 100.0},
    {"top_k": 1},
    {"top_k": 7, "temperature": 0.7},
    {"top_k": 60},
    {"top_k": 1_000_000},
    {"top_p": 0.95},
    {"top_p": 1e-6},
    {"top_p": 0.999, "temperature": 2.5},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 50, "top_p": 0.9, "min_p": 0.01, "temperature": 1.3},
)
SIZES = (5, 32, 127, 129, 515, 4096)
_ROUNDING = 1e-4
"""Of scores that decide: more than float32 loses, far less than what usually decides."""


def table_of(settings: Seq[dict[str, Any]]) -> SamplingTable:
    return SamplingTable.build(
        [(SamplingParams(seed=i, **one), 0, 0) for i, one in enumerate(settings)]
    )


def picks_of(num_picks: int, num_rows: int, step: int = 0) -> list[Pick]:
    sequence: Any = Sequence.__new__(Sequence)  # of which drawing asks nothing
    return [Pick(sequence, 3 * i, num_rows, denoising_step=step) for i in range(num_picks)]


def rows_of(kind: str, num_rows: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(num_rows, size, generator=generator) * 3
    if kind == "peaked":
        logits[:, :: max(1, size // 20)] += 8
    elif kind == "tied":
        logits = logits.round()
    elif kind == "flat":
        logits[:] = 0.25
    elif kind == "banned":
        logits[:, 1::2] = -torch.inf
    elif kind == "alone":
        logits[:, :] = -torch.inf
        logits[:, size // 2] = 1.0
    return logits


def by_torch(
    logits: Tensor, table: SamplingTable, picks: Seq[Pick]
) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens, and of every row its setting and position."""
    index = torch.tensor([i for i, pick in enumerate(picks) for _ in range(pick.num_rows)])
    positions = torch.tensor([p.first_position + k for p in picks for k in range(p.num_rows)])
    steps = torch.tensor([pick.denoising_step for pick in picks for _ in range(pick.num_rows)])
    return sample(logits, table, index, positions, None, steps), index, positions


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["wide", "peaked", "tied", "flat", "banned", "alone"])
def test_tokens_are_those_of_torch(kind: str, size: int) -> None:
    """All settings beside each other, at two denoising steps."""
    table, kernels = table_of(SETTINGS), KernelDraws()
    logits = rows_of(kind, 4 * len(SETTINGS), size)
    for step in (0, 3):
        picks = picks_of(len(SETTINGS), 4, step)
        found = kernels.draw(logits, kernels.settings(table), picks)
        assert torch.tensor(found).flatten().tolist() == by_torch(logits, table, picks)[0].tolist()


def test_a_wide_vocabulary_is_drawn_from_as_by_torch() -> None:
    settings = ({"temperature": 0.0}, {}, {"top_p": 0.9}, {"top_k": 50}, {"min_p": 0.05})
    table, kernels, picks = table_of(settings), KernelDraws(), picks_of(len(settings), 1)
    logits = rows_of("peaked", len(settings), 151_936)
    found = kernels.draw(logits, kernels.settings(table), picks)
    assert torch.tensor(found).flatten().tolist() == by_torch(logits, table, picks)[0].tolist()


def test_of_many_draws_those_that_differ_are_near_ties() -> None:
    """Half of them filtered: what differs lies within rounding of the other in noisy scores."""
    num_rows, size = 4000, 1000
    table, kernels, picks = table_of([{}, {"top_p": 0.9}]), KernelDraws(), picks_of(2, num_rows)
    logits = rows_of("wide", 2 * num_rows, size)
    tokens = torch.tensor(kernels.draw(logits, kernels.settings(table), picks)).flatten()
    expected, index, positions = by_torch(logits, table, picks)
    for row in (tokens != expected).nonzero().flatten().tolist():
        one = slice(row, row + 1)
        own = processed_logprobs(logits[one], table, index[one])[0].exp()
        noise = gumbel(table.seed[index[one]], *[torch.zeros(1).long()] * 2, positions[one], size)[
            0
        ]
        a, b = int(tokens[row]), int(expected[row])
        is_edge = own[a] == 0.0 or own[b] == 0.0
        lead = (logits[row] + noise)[[a, b]].diff().abs()
        assert is_edge or lead < _ROUNDING
    assert (tokens != expected).sum() < 5


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.9}], ids=str
)
@pytest.mark.parametrize("odd", ["nan", "inf", "two", "-inf"])
def test_logits_that_are_no_numbers_end_as_with_torch(odd: str, settings: dict[str, Any]) -> None:
    logits = rows_of("wide", 1, 600)
    if odd == "two":
        logits[0, [77, 400]] = torch.inf
    elif odd == "-inf":
        logits[:] = -torch.inf
    else:
        logits[0, 300] = float(odd)
    table, kernels, picks = table_of([settings]), KernelDraws(), picks_of(1, 1)
    found = kernels.draw(logits, kernels.settings(table), picks)
    assert found == [by_torch(logits, table, picks)[0].tolist()]


def test_prompt_rows_are_drawn_at_position_zero() -> None:
    table, kernels = table_of([{}]), KernelDraws()
    [pick] = picks_of(1, 3)
    logits = rows_of("wide", 1, 200).expand(3, -1)
    [found] = kernels.draw(logits, kernels.settings(table), [pick._replace(first_position=-2)])
    expected = by_torch(logits[:1], table, [pick._replace(num_rows=1)])[0].tolist()
    assert found == expected * 3


@pytest.mark.parametrize("size", [31, 4096])
def test_drafts_get_the_noise_and_the_bans_of_what_is_drawn_from(size: int) -> None:
    table, kernels = table_of(SETTINGS), KernelDraws()
    picks, width = picks_of(len(SETTINGS), 2), size + 33
    padded = torch.zeros(2 * len(SETTINGS), width)
    padded[:, :size] = logits = rows_of("peaked", len(padded), size)
    draws = kernels.plan(kernels.settings(table), picks, size)
    found = torch.full((len(padded), width), torch.nan)
    add_noise(padded.numpy(), draws, 0, len(padded), found.numpy())
    _, index, positions = by_torch(logits, table, picks)
    zeros = torch.zeros_like(index)
    noise = gumbel(table.seed[index], zeros, zeros, positions, size)
    noise.masked_fill_(table.is_greedy[index, None], 0.0)
    refused = processed_logprobs(logits, table, index) == -torch.inf
    refused &= ~table.is_greedy[index, None]
    unscaled = found[:, :size] / table.temperature[index, None]
    expected = noise.masked_fill(refused, -torch.inf)
    torch.testing.assert_close(unscaled, expected, atol=2e-6, rtol=0.0)
    assert not found.isnan().any()


def test_each_thread_draws_its_own_rows() -> None:
    table, kernels, picks = table_of(SETTINGS), KernelDraws(), picks_of(len(SETTINGS), 3)
    logits = rows_of("wide", 3 * len(SETTINGS), 300)
    whole = kernels.draw(logits, kernels.settings(table), picks)
    draws: Draws = kernels.plan(kernels.settings(table), picks, 300)
    for first, end in ((20, len(logits)), (0, 1), (1, 20)):
        draw_tokens(np.ascontiguousarray(logits.numpy()), draws, first, end)
    assert kernels.drawn(draws) == whole
