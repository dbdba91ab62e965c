"""Draws a draft's tokens one after the other, each in the light of the one before it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.models.cpu.decoder import Ints
from engine.models.cpu.functions import larger
from engine.models.cpu.kernel import inner_kernel, kernel, reordering_kernel
from engine.models.cpu.product import PANEL, Floats, Panels, project
from engine.models.cpu.team import begin, leave, meet, share


class Markov(NamedTuple):
    """What a token adds to the logits of the next (`models/draft_heads.py`)."""

    embedding: Floats  # [V, r]
    head: Panels  # its output matrix


class Drafts(NamedTuple):
    """What S drafts are drawn from, beside their logits [R, V], V a multiple of 32."""

    vocab_size: int  # the columns that are tokens
    starts: Ints  # [S + 1]: draft s has rows starts[s] to starts[s + 1]
    anchors: Ints  # [S], the tokens before
    noise: Floats  # [R, V], added to the logits, or [0, V]
    drawn: Ints  # [R], written
    sums: Floats  # [2, members, S], room: the largest sum that each member has found
    tokens: Ints  # [2, members, S], room: and where


@kernel
def draw_chains(member, scores, markov, drafts):
    """The most likely tokens of all drafts; scores: [R, V], as the logits of `draw`."""
    leave(member, draw(member, scores, markov, drafts, begin(member)))


@inner_kernel
def draw(member, logits, markov, drafts, barrier):
    """The most likely tokens by logits, noise and what the token before says.

    Each member looks for them in the columns that are its share of the output head, too. Returns
    the number of the next barrier.
    """
    first, end = share(logits.shape[1] // PANEL, member)
    for row in range(logits.shape[0]):
        for column in range(max(drafts.vocab_size, first * PANEL), end * PANEL):
            logits[row, column] = -np.inf
    num_drafts, rank = drafts.anchors.shape[0], markov.embedding.shape[1]
    features = np.empty((num_drafts, rank), np.float32)
    bias = np.empty((num_drafts, (end - first) * PANEL), np.float32)
    alive, previous = np.empty(num_drafts, np.int64), drafts.anchors.copy()
    for place in range(drafts.drawn.shape[0]):
        count = _go_on(drafts.starts, place, alive)
        if count == 0:
            break
        for i in range(count):
            for k in range(rank):
                features[i, k] = markov.embedding[previous[alive[i]], k]
        part, width = bias[:count], bias.shape[1]
        project(features[:count], markov.head, first, part, width, 0, end - first, 0)
        # Two rooms in turn: who is slow to read the one is not waited for before the next meeting.
        sums, tokens = drafts.sums[place % 2], drafts.tokens[place % 2]
        for i in range(count):
            row = drafts.starts[alive[i]] + place
            noise = drafts.noise[row : row + 1]
            best, sums[member.rank, i] = _most_likely(logits[row], noise, first, part[i])
            tokens[member.rank, i] = first * PANEL + best
        barrier = meet(member, barrier)
        for i in range(count):
            token = _agreed(member, sums[:, i], tokens[:, i])
            previous[alive[i]] = token
            if member.rank == 0:
                drafts.drawn[drafts.starts[alive[i]] + place] = token
    return barrier


@inner_kernel
def _go_on(starts, place, alive):
    """Write down which drafts have so many tokens and one more; returns how many do."""
    count = 0
    for draft in range(starts.shape[0] - 1):
        if starts[draft] + place < starts[draft + 1]:
            alive[count] = draft
            count += 1
    return count


@inner_kernel
def _agreed(member, sums, tokens):
    """The token with the largest sum that any member has found, of equals the first."""
    finder = 0
    for other in range(1, member.size):
        if sums[other] > sums[finder]:
            finder = other
    return tokens[finder]


@reordering_kernel
def _most_likely(logits, noise, first_panel, bias):
    """The first place with the largest sum in a member's panels, and that sum.

    logits: [V]; noise: [1, V], or [0, V]; bias: [columns of the member], overwritten.
    """
    sums, others = bias.reshape(-1, PANEL), logits.reshape(-1, PANEL)
    largest, best = np.float32(-np.inf), 0
    for panel in range(sums.shape[0]):
        most = np.float32(-np.inf)
        for i in range(PANEL):
            sums[panel, i] += others[first_panel + panel, i]
        if noise.shape[0]:
            added = noise.reshape(-1, PANEL)
            for i in range(PANEL):
                sums[panel, i] += added[first_panel + panel, i]
        for i in range(PANEL):
            most = larger(most, sums[panel, i])
        if most > largest:
            largest, best = most, panel
    for i in range(best * PANEL, min((best + 1) * PANEL, bias.shape[0])):
        if bias[i] == largest:
            return i, largest
    return 0, largest
