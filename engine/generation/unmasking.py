"""Which masks become tokens after a forward, for the blocks of many sequences at once."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

import torch
from torch import Tensor

from engine.decoding.diffusion_sampler import DiffusionSampler
from engine.decoding.noise import NoiseStream, uniform
from engine.decoding.sampling_table import SamplingTable
from engine.generation.mask_rows import MaskRows
from engine.generation.masked_block import MaskedBlock
from engine.generation.strategy import RowsOutput
from engine.request.options import GenerationOptions, Remasking

DEFAULT_THRESHOLD = 0.9
"""What Fast-dLLM (arXiv 2505.22618) found to cost no quality."""


class Denoised(NamedTuple):
    """A block, and what a forward gave for its places from the first mask to the last."""

    block: MaskedBlock
    output: RowsOutput


def reveal(denoised: Seq[Denoised]) -> None:
    """Write tokens into the blocks that every request's own rule makes of its masks."""
    by_rule: dict[DiffusionSampler, list[Denoised]] = {}
    for one in denoised:
        rule = unmasking_rule(one.output.rows.sequence.options)
        by_rule.setdefault(rule, []).append(one)
    for rule, members in by_rule.items():
        _reveal(rule, members)


def unmasking_rule(options: GenerationOptions) -> DiffusionSampler:
    """The rule of a request whose silence was filled from the defaults.

    Of what contradicts each other the threshold gives way, for a default may have brought it.
    Where nothing is said it is a threshold of 0.9, in a random order one mask a step.
    """
    threshold = options.confidence_threshold
    says_nothing = (threshold, options.unmasking_factor, options.denoising_steps) == (None,) * 3
    if options.remasking is Remasking.RANDOM:
        return DiffusionSampler(Remasking.RANDOM, options.denoising_steps)
    if options.unmasking_factor is not None:
        threshold = None
    elif says_nothing:
        threshold = DEFAULT_THRESHOLD
    return DiffusionSampler(
        options.remasking, options.denoising_steps, threshold, options.unmasking_factor
    )


def _reveal(rule: DiffusionSampler, denoised: Seq[Denoised]) -> None:
    masks = [one.block.masks for one in denoised]
    asked = [[place - own[0] for place in own] for own in masks]
    rows = MaskRows.of([one.output for one in denoised], asked)
    steps = [one.block.num_forwards for one in denoised]
    order = None
    if rule.remasking is Remasking.RANDOM:
        order = _order(denoised, masks).to(rows.logits.device)
    revealed = rows.split(rule(rows.logits, rows.token_ids, rows.lengths, steps, order))
    drawn = rows.split(rows.token_ids)
    for one, *columns in zip(denoised, masks, drawn, revealed, strict=True):
        for place, token_id, is_revealed in zip(*columns, strict=True):
            if is_revealed:
                one.block.token_ids[place] = token_id
        one.block.num_forwards += 1


def _order(denoised: Seq[Denoised], masks: Seq[Seq[int]]) -> Tensor:
    """A random number for each mask, the same in every step: [N]."""
    sequences = [one.output.rows.sequence for one in denoised]
    table = SamplingTable.build([(s.params, s.prompt_index, s.choice) for s in sequences])
    owner = torch.tensor([i for i, own in enumerate(masks) for _ in own])
    positions = torch.tensor(
        [
            one.block.start + place - one.output.rows.sequence.num_prompt_tokens
            for one, own in zip(denoised, masks, strict=True)
            for place in own
        ]
    )
    streams = torch.full_like(positions, NoiseStream.REMASKING)
    seeds, prompts, choices = table.seed, table.prompt_index, table.choice
    return uniform(seeds[owner], prompts[owner], choices[owner], positions, streams)
