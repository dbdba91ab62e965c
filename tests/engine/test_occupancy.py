"""Counting rounds after the fact: against every draft of every text in a world small enough."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import product
from math import prod

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.training.occupancy import Acceptance, Floats, expected_rounds

END = 0  # the token that ends a text
Ids = tuple[int, ...]


class World:
    """A verifier that knows the token before, and a drafter that knows its anchor and its place.

    With a Markov head the drafter knows the token drafted before as well.
    """

    def __init__(self, vocab: int, depth: int, max_tokens: int, *, markov: bool = False) -> None:
        random = np.random.default_rng(3)
        self.vocab, self.depth, self.max_tokens = vocab, depth, max_tokens
        self.p = random.dirichlet(np.ones(vocab), size=vocab)
        drafter = random.dirichlet(np.ones(vocab), size=(vocab, depth, vocab))
        self.q = drafter if markov else np.repeat(drafter[:, :, :1], vocab, axis=2)

    def length(self, num_outputs: int) -> int:
        """Drafts of a round: one place is left for the bonus."""
        return min(self.depth, self.max_tokens - num_outputs - 1)

    def count(self, stream: Ids) -> Acceptance:
        """What the evaluator says of a stream, which goes on after its text has ended."""
        anchors = len(text_of(stream)) - 1
        accept = np.zeros((anchors, self.depth))
        for n, j in product(range(anchors), range(self.depth)):
            if (t := n + 1 + j) < len(stream):
                before = stream[t - 1]
                q, p = self.q[stream[n], j, before], self.p[before]
                accept[n, j] = min(1.0, q[stream[t]] / p[stream[t]])
        lengths = np.array([self.length(n + 1) for n in range(anchors)], np.int64)
        return expected_rounds(accept, lengths)


def text_of(stream: Ids) -> Ids:
    end = stream.index(END, 1) + 1 if END in stream[1:] else len(stream)
    return stream[:end]


def rounds_of(world: World, anchor: int, length: int) -> Iterator[tuple[float, Ids, int]]:
    """Leviathan et al., algorithm 1: every way a round can go, (chance, committed, accepted)."""
    for draft in product(range(world.vocab), repeat=length):
        before = (anchor, *draft)
        alive = prod(world.q[anchor, j, before[j]][draft[j]] for j in range(length))
        for j, token in enumerate(draft):
            p, q = world.p[before[j]], world.q[anchor, j, before[j]]
            accepted = min(1.0, p[token] / q[token])
            residual = np.maximum(p - q, 0)
            for other in np.flatnonzero(residual):
                chance = alive * (1 - accepted) * residual[other] / residual.sum()
                yield chance, (*draft[:j], int(other)), j
            alive *= accepted
        for bonus in range(world.vocab):
            yield alive * world.p[before[-1]][bonus], (*draft, bonus), length


def counts_by_text(world: World) -> dict[Ids, Floats]:
    """Text after its first token -> its chance, and times that its rounds, accepted, drafted."""

    @cache
    def play(anchor: int, num_outputs: int) -> dict[Ids, Floats]:
        found: dict[Ids, Floats] = defaultdict(lambda: np.zeros(4))
        length = world.length(num_outputs)
        for chance, committed, accepted in rounds_of(world, anchor, length):
            own = np.array([1, 1, accepted, length])
            kept = text_of((anchor, *committed))[1:]
            now = num_outputs + len(kept)
            ended = kept[-1] == END or now == world.max_tokens
            rest = {(): np.array([1.0, 0, 0, 0])} if ended else play(kept[-1], now)
            for suffix, after in rest.items():
                both = after + after[0] * (own - [1, 0, 0, 0])
                found[kept + suffix] += chance * both
        return dict(found)

    return play(1, 1)


@pytest.mark.parametrize("markov", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_text_costs_the_rounds_of_the_real_process(depth: int, markov: bool) -> None:
    world = World(vocab=3, depth=depth, max_tokens=6, markov=markov)
    found: dict[Ids, Floats] = defaultdict(lambda: np.zeros(4))
    for rest in product(range(world.vocab), repeat=world.max_tokens - 1):
        stream = (1, *rest)
        chance = prod(world.p[a][b] for a, b in zip(stream, rest, strict=False))
        total = world.count(stream)
        own = [1, total.num_verifies, total.num_accepted, total.num_drafted]
        found[text_of(stream)[1:]] += chance * np.array(own)
    expected = counts_by_text(world)
    assert found.keys() == expected.keys()
    assert sum(counts[0] for counts in expected.values()) == pytest.approx(1)
    for text, counts in expected.items():
        np.testing.assert_allclose(found[text], counts, rtol=1e-12, err_msg=str(text))


def test_simulated_serving_needs_the_expected_rounds_within_its_standard_error() -> None:
    world = World(vocab=5, depth=4, max_tokens=12, markov=True)
    random = np.random.default_rng(7)
    differences = []
    for _ in range(1200):
        stream, num_rounds = simulate(world, random)
        differences.append(num_rounds - world.count(stream).num_verifies)
    error = np.std(differences) / len(differences) ** 0.5
    assert 0 < error < 0.1
    assert abs(np.mean(differences)) < 4 * error


def simulate(world: World, random: np.random.Generator) -> tuple[Ids, int]:
    stream, num_rounds = [1], 0
    while stream[-1] != END and len(stream) < world.max_tokens:
        committed = one_round(world, stream[-1], world.length(len(stream)), random)
        stream += text_of((stream[-1], *committed))[1:]
        num_rounds += 1
    return tuple(stream), num_rounds


def one_round(world: World, anchor: int, length: int, random: np.random.Generator) -> Ids:
    committed: Ids = ()
    before = anchor
    for j in range(length):
        p, q = world.p[before], world.q[anchor, j, before]
        token = int(random.choice(world.vocab, p=q))
        if random.random() >= p[token] / q[token]:
            residual = np.maximum(p - q, 0)
            return (*committed, int(random.choice(world.vocab, p=residual / residual.sum())))
        committed, before = (*committed, token), token
    return (*committed, int(random.choice(world.vocab, p=world.p[before])))


def walk(accept: list[list[int]], lengths: list[int]) -> Acceptance:
    return expected_rounds(np.array(accept, np.float64), np.array(lengths, np.int64))


def test_certain_drafts_are_a_walk_of_a_server() -> None:
    # Both drafts and the bonus, then a refusal, then a draft that the limit leaves alone.
    total = walk([[1, 1], [1, 1], [1, 1], [0, 1], [1, 0]], [2, 2, 2, 1, 0])
    assert (total.num_verifies, total.num_committed) == (3, 5)
    assert (total.num_drafted, total.num_accepted) == (3, 2)
    assert total.reached.tolist() == [2, 1]
    assert total.by_position == [0.5, 1.0]
    assert (total.mean_committed, total.mean_accepted) == (5 / 3, 2 / 3)


def test_drafts_accepted_past_the_end_count_as_accepted_but_not_as_committed() -> None:
    total = walk([[1, 1, 1]], [3])
    assert (total.num_verifies, total.num_committed, total.num_accepted) == (1, 1, 3)


def test_a_text_that_ends_with_its_first_token_has_no_round() -> None:
    total = expected_rounds(np.zeros((0, 3)), np.zeros(0, np.int64))
    assert (total.num_verifies, total.num_committed, total.mean_committed) == (0, 0, 0)


def test_totals_of_different_block_sizes_add_up() -> None:
    total = Acceptance()
    total.add(walk([[1, 1]], [2]))
    total.add(walk([[1]], [1]))
    places: NDArray[np.float64] = total.passed
    assert places.tolist() == [2, 1]
