"""Sampling by kernels, from Python: what `TokenSampler` asks of them, in arrays."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.decoding.sampling_table import SamplingTable
from engine.models.cpu.chain import Drafts
from engine.models.cpu.decoder import Ints
from engine.models.cpu.product import Floats
from engine.models.cpu.sampling import Draws, draw_tokens
from engine.models.pick import Pick

_NO_PICK = Draws(
    0,
    np.empty((0, 3), np.float32),
    np.empty((0, 6), np.int64),
    np.zeros(1, np.int64),
    np.empty(0, np.int64),
    np.empty(0, np.int64),
    np.empty(0, np.int64),
    has_noise=False,
)


class DrawSettings(NamedTuple):
    """A sampling table as the kernels read it: `Draws.reals` and `Draws.wholes`."""

    reals: Floats
    wholes: Ints
    has_noise: bool

    @classmethod
    def of(cls, table: SamplingTable) -> DrawSettings:
        is_filtered = (table.top_p < 1.0) | (table.top_k > 0) | (table.min_p > 0.0)
        whole = (table.seed, table.prompt_index, table.choice, table.top_k)
        flags = (table.is_greedy.long(), is_filtered.long())
        return cls(
            torch.stack((table.temperature, table.top_p, table.min_p.log()), dim=1).numpy(),
            torch.stack((*whole, *flags), dim=1).numpy(),
            not table.all_greedy,
        )


class KernelDraws:
    """What `TokenSampler` does with kernels in the place of torch."""

    def settings(self, table: SamplingTable) -> DrawSettings:
        return DrawSettings.of(table)

    def plan(self, settings: DrawSettings, picks: Seq[Pick], vocab_size: int) -> Draws:
        """How the rows of these picks are drawn, each by its line of the settings."""
        starts = [0, *accumulate([pick.num_rows for pick in picks])]
        numbers = starts + [pick.first_position for pick in picks]
        numbers += [pick.denoising_step for pick in picks]
        columns, count = np.array(numbers), len(picks)
        return Draws(
            vocab_size,
            settings.reals,
            settings.wholes,
            columns[: count + 1],
            columns[count + 1 : -count],
            columns[-count:],
            np.empty(starts[-1], np.int64),
            settings.has_noise,
        )

    def draw(self, logits: Tensor, settings: DrawSettings, picks: Seq[Pick]) -> list[list[int]]:
        """The tokens of each pick by logits [R, V], as `decoding.sampler.sample` draws them."""
        draws = self.plan(settings, picks, logits.shape[1])
        draw_tokens(logits.float().contiguous().numpy(), draws, 0, len(logits))
        return self.drawn(draws)

    def drawn(self, draws: Draws) -> list[list[int]]:
        """What a forward has drawn, by pick."""
        return tokens_of(draws)


def tokens_of(draws: Draws | Drafts) -> list[list[int]]:
    """What was drawn, by pick or by draft."""
    token_ids: list[int] = draws.drawn.tolist()
    if len(draws.starts) == 2:
        return [token_ids]
    return [token_ids[first:end] for first, end in pairwise(draws.starts.tolist())]


def no_draws() -> Draws:
    """For a forward whose rows nobody draws from; numba compiles for the types that it is given."""
    return _NO_PICK


def greedy_draws(num_rows: Seq[int], vocab_size: int) -> Draws:
    """Of picks with so many rows each: the most likely tokens."""
    starts, count = np.array([0, *accumulate(num_rows)]), len(num_rows)
    wholes = np.zeros((count, 6), np.int64)
    wholes[:, 4] = 1
    zeros = np.zeros(count, np.int64)
    drawn = np.empty(starts[-1], np.int64)
    reals = np.ones((count, 3), np.float32)
    return Draws(vocab_size, reals, wholes, starts, zeros, zeros, drawn, has_noise=False)


def draw_once(vocab_size: int) -> None:
    """One token of nothing: the kernel is compiled, or read from disk, when first called."""
    draw_tokens(np.zeros((1, vocab_size), np.float32), greedy_draws([1], vocab_size), 0, 1)


def part_of(draws: Draws, picks: slice) -> Draws:
    """Some of the picks alone; what is drawn for them is kept apart."""
    starts = draws.starts[picks.start : picks.stop + 1]
    return draws._replace(
        reals=draws.reals[picks],
        wholes=draws.wholes[picks],
        starts=starts - starts[0],
        positions=draws.positions[picks],
        steps=draws.steps[picks],
        drawn=np.empty(starts[-1] - starts[0], np.int64),
    )
