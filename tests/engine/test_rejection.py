"""The rule of p/q: what stands, what follows, and that each sequence of a batch is its own."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq

import pytest
import torch
from torch import Tensor

from engine.decoding.rejection import (
    Layout,
    Verdict,
    acceptance,
    committed_tokens,
    count_accepted_by_ratio,
    residual,
    verify_by_rejection,
)
from engine.decoding.sampler import processed_logprobs, sample
from engine.decoding.sampling_table import SamplingTable
from engine.request.sampling_params import SamplingParams

V = 7


def table_of(temperatures: Seq[float], *, seed: int = 0, top_k: int = 0) -> SamplingTable:
    return SamplingTable.build(
        [
            (SamplingParams(seed=seed + i, temperature=t, top_k=top_k), 0, i % 3)
            for i, t in enumerate(temperatures)
        ]
    )


def rows(count: int, seed: int) -> Tensor:
    return torch.randn(count, V, generator=torch.Generator().manual_seed(seed)) * 1.5


def count(
    p: Seq[Seq[float]],
    q: Seq[Seq[float]],
    draft: Seq[int],
    uniforms: Seq[float],
    lengths: Seq[int],
) -> list[int]:
    numbers = [torch.tensor(list(rows)).view(-1, 2).log() for rows in (p, q)]
    ids, drawn = torch.tensor(list(draft), dtype=torch.int64), torch.tensor(list(uniforms))
    counts: list[int] = count_accepted_by_ratio(*numbers, ids, drawn, Layout.of(lengths)).tolist()
    return counts


def test_a_token_stands_while_u_is_below_the_ratio() -> None:
    half, mostly = [0.5, 0.5], [0.2, 0.8]
    for u, expected in ((0.61, 1), (0.63, 0)):
        assert count([half, half], [mostly], [1], [u], [1]) == [expected]  # 0.5 / 0.8 = 0.625
    assert count([half, half], [mostly], [0], [0.999], [1]) == [1]  # p > q always stands


def test_each_sequence_accepts_for_itself_and_nothing_after_its_first_refusal() -> None:
    p, q = [0.5, 0.5], [0.25, 0.75]
    stands, falls = 0.1, 0.9  # of token 1, with a ratio of 2/3
    lengths, expected = [2, 0, 3, 2], [2, 0, 0, 1]
    uniforms = [stands, stands, falls, stands, stands, stands, falls]
    assert count([p] * 11, [q] * 7, [1] * 7, uniforms, lengths) == expected
    # In another order, and alone, each gets the same.
    turned = [*uniforms[5:], *uniforms[2:5], *uniforms[:2]]
    assert count([p] * 11, [q] * 7, [1] * 7, turned, lengths[::-1]) == expected[::-1]


def test_the_ratio_reads_the_target_row_of_its_own_token() -> None:
    """The row after the token before it: neither one late, nor that of another sequence."""
    sure, never = [0.0, 1.0], [1.0, 0.0]
    target = [sure, sure, never, never, sure, never, sure, never]  # drafts of 2, 0 and 3 tokens
    assert count(target, [[0.5, 0.5]] * 5, [1] * 5, [0.9] * 5, [2, 0, 3]) == [2, 0, 1]


def test_what_the_verifier_excludes_never_stands_and_what_the_drafter_excludes_does() -> None:
    zero, some = torch.tensor(-math.inf), torch.tensor(math.log(0.3))
    p = torch.stack([zero, zero, some, some])
    q = torch.stack([some, zero, zero, some])
    assert acceptance(p, q).tolist() == [0.0, 0.0, 1.0, 1.0]


def weights_of(p: Seq[float], q: Seq[float], num_accepted: int) -> list[float]:
    target = torch.tensor([list(p), list(p)]).log()
    drafted = torch.tensor([list(q)]).log()
    result = residual(target, drafted, torch.tensor([num_accepted]), Layout.of([1]))
    weights: list[float] = result[0].tolist()
    return weights


def test_the_residual_is_what_p_has_more_than_q() -> None:
    p, q = [0.5, 0.3, 0.2, 0.0], [0.1, 0.6, 0.0, 0.3]
    assert weights_of(p, q, 0) == pytest.approx([0.4, 0.0, 0.2, 0.0])
    assert weights_of(p, q, 1) == pytest.approx(p)  # the bonus knows no drafter


def test_an_empty_residual_falls_back_to_p() -> None:
    p = [0.5, 0.3, 0.2, 0.0]
    assert weights_of(p, p, 0) == pytest.approx(p)


def test_a_draft_from_the_verifiers_own_distribution_always_stands() -> None:
    table = table_of([1.0] * 200)
    index, zero = torch.arange(200), torch.zeros(200, dtype=torch.int64)
    logprobs = processed_logprobs(rows(1, 3).expand(200, V), table, index)
    draft = sample(logprobs, table, index, zero)
    target = logprobs.repeat_interleave(2, 0)
    verdict = verify_by_rejection(target, logprobs, draft, [1] * 200, table, index, zero)
    assert verdict.num_accepted.tolist() == [1] * 200


def ragged_batch(
    temperatures: Seq[float], lengths: Seq[int]
) -> tuple[Tensor, Tensor, Tensor, SamplingTable, Tensor]:
    """Target and draft logprobs, drafts, table and first positions of a batch."""
    table = table_of(temperatures, seed=40)
    owner = torch.tensor([s for s, n in enumerate(lengths) for _ in range(n)], dtype=torch.int64)
    place = torch.tensor([j for n in lengths for j in range(n)], dtype=torch.int64)
    first = torch.arange(len(lengths)) * 5
    rows_owner = torch.tensor([s for s, n in enumerate(lengths) for _ in range(n + 1)])
    draft_logits = rows(len(owner), 1)
    target = processed_logprobs(rows(len(rows_owner), 2), table, rows_owner)
    drafted = processed_logprobs(draft_logits, table, owner)
    draft = sample(draft_logits, table, owner, first[owner] + place)
    return target, drafted, draft, table, first


def test_a_sequence_in_a_ragged_batch_gets_what_it_gets_alone() -> None:
    temperatures = [1.0, 0.0, 0.7, 1.5, 1.0, 0.0, 2.0, 1.0] * 4
    lengths = [3, 2, 0, 5, 1, 4, 4, 0] * 4
    target, drafted, draft, table, first = ragged_batch(temperatures, lengths)
    index = torch.arange(len(lengths))
    together = verify_by_rejection(target, drafted, draft, lengths, table, index, first)
    commits = committed_tokens(draft, lengths, together)
    start = 0
    for s, n in enumerate(lengths):
        mine, own = slice(start, start + n), slice(start + s, start + s + n + 1)
        alone = verify_by_rejection(
            target[own], drafted[mine], draft[mine], [n], table, index[s : s + 1], first[s : s + 1]
        )
        assert committed_tokens(draft[mine], [n], alone) == [commits[s]]
        accepted = int(together.num_accepted[s])
        assert commits[s][:-1] == draft[mine].tolist()[:accepted]
        start += n
    counts = set(together.num_accepted.tolist())
    assert len(counts) > 2, "the test proves little where all accept alike"


def test_the_argmax_is_written_where_the_temperature_is_zero() -> None:
    lengths = [3, 0, 2, 4]
    target, drafted, draft, table, first = ragged_batch([0.0] * 4, lengths)
    greedy = target.argmax(-1)
    draft[:3] = greedy[:3]  # all right; the last sequence is right once and then wrong
    draft[5], draft[6] = greedy[8], (greedy[9] + 1) % V
    drafted.fill_(-math.inf).scatter_(1, draft[:, None], 0.0)
    index = torch.arange(4)
    verdict = verify_by_rejection(target, drafted, draft, lengths, table, index, first)
    assert verdict.num_accepted[[0, 1, 3]].tolist() == [3, 0, 1]
    commits = committed_tokens(draft, lengths, verdict)
    starts = [0, 4, 5, 8]
    for commit, start in zip(commits, starts, strict=True):
        assert commit == greedy[start : start + len(commit)].tolist()
    # The same among rows that are drawn.
    mixed = table_of([0.0, 1.0, 0.0, 0.0], seed=40)
    again = verify_by_rejection(target, drafted, draft, lengths, mixed, index, first)
    assert committed_tokens(draft, lengths, again)[::2] == commits[::2]


def test_a_batch_without_any_draft_draws_the_next_tokens() -> None:
    target, drafted, draft, table, first = ragged_batch([1.0, 0.0, 1.0], [0, 0, 0])
    index = torch.arange(3)
    verdict = verify_by_rejection(target, drafted, draft, [0, 0, 0], table, index, first)
    commits = committed_tokens(draft, [0, 0, 0], verdict)
    assert [len(commit) for commit in commits] == [1, 1, 1]
    assert commits[1] == [int(target[1].argmax())]


def test_the_token_after_a_draft_is_drawn_with_the_noise_of_its_own_position() -> None:
    """A bonus is what the same row would have given at that position without a draft."""
    table, index = table_of([1.0] * 50), torch.arange(50)
    logprobs = processed_logprobs(rows(50, 3), table, index)
    first = index * 3
    draft = sample(logprobs, table, index, first)
    bonus = processed_logprobs(rows(50, 4), table, index)
    target = torch.stack([logprobs, bonus], 1).flatten(0, 1)
    drafted = verify_by_rejection(target, logprobs, draft, [1] * 50, table, index, first)
    nothing = logprobs[:0], draft[:0]
    plain = verify_by_rejection(bonus, *nothing, [0] * 50, table, index, first + 1)
    assert drafted.num_accepted.tolist() == [1] * 50
    assert torch.equal(drafted.next_token_ids, plain.next_token_ids)


def test_a_filter_of_the_verifier_holds_for_residual_and_bonus() -> None:
    table = table_of([1.0] * 300, top_k=2)
    index, zero = torch.arange(300), torch.zeros(300, dtype=torch.int64)
    logits, unfiltered = rows(1, 5).expand(300, V), table_of([1.0] * 300)
    target = processed_logprobs(logits, table, index).repeat_interleave(2, 0)
    drafted = processed_logprobs(logits, unfiltered, index)
    draft = sample(logits, unfiltered, index, zero)
    verdict = verify_by_rejection(target, drafted, draft, [1] * 300, table, index, zero)
    allowed = set(logits[0].topk(2).indices.tolist())
    commits = committed_tokens(draft, [1] * 300, verdict)
    assert {token for commit in commits for token in commit} == allowed
    assert {len(commit) for commit in commits} == {1, 2}


def test_a_verdict_is_read_row_by_row() -> None:
    draft = torch.tensor([1, 2, 3, 4, 5])
    verdict = Verdict(torch.tensor([1, 0, 3]), torch.tensor([7, 8, 9]))
    assert committed_tokens(draft, [2, 0, 3], verdict) == [[1, 7], [8], [3, 4, 5, 9]]
