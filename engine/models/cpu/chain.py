"""Draws a draft's tokens one after the other, each in the light of the one before it."""

from __future__ import annotations

import numpy as np

from engine.models.cpu.kernel import kernel, reordering_kernel
from engine.models.cpu.product import PANEL, project
from engine.models.cpu.team import meet, share


@kernel
def draw_chains(member, scores, starts, anchors, embedding, head, drawn):
    """The most likely tokens of S drafts under a Markov head (`models/draft_heads.py`).

    scores: [R, V], noise included; draft s has rows starts[s] to starts[s + 1]. anchors: [S], the
    tokens before. embedding: [V, r]; head: its output matrix, packed. drawn: [R], written.
    """
    first, end = share(anchors.shape[0], member)
    rank = embedding.shape[1]
    num_panels = head.shape[0] // (rank * PANEL)
    features = np.empty((end - first, rank), np.float32)
    bias = np.empty((end - first, num_panels * PANEL), np.float32)
    rows = np.empty(end - first, np.int64)
    place = 0
    while True:
        count = 0
        for draft in range(first, end):
            row = starts[draft] + place
            if row < starts[draft + 1]:
                features[count] = embedding[drawn[row - 1] if place else anchors[draft]]
                rows[count] = row
                count += 1
        if count == 0:
            break
        part = bias[:count]
        project(features[:count], rank, head, 0, part, part.shape[1], 0, num_panels, 0)
        for i in range(count):
            drawn[rows[i]] = _most_likely(scores[rows[i]], part[i])
        place += 1
    meet(member, 1)


@reordering_kernel
def _most_likely(scores, bias):
    """The first index of the largest sum; bias is overwritten."""
    largest = np.float32(-np.inf)
    for i in range(scores.shape[0]):
        bias[i] += scores[i]
        largest = max(largest, bias[i])
    for i in range(scores.shape[0]):
        if bias[i] == largest:
            return i
    return 0
