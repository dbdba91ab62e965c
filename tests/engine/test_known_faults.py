"""Faults that engines of this kind are known to have, one test each.

Drafts come from the answers that `ar` gave, spoilt where a test wants them refused.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import pytest

from engine import continuous_batching
from engine.base import BaseStats
from engine.cache.prefix_cache import PrefixCache
from engine.generation.deer import Deer
from engine.generation.strategy import Rows, RowsOutput
from engine.request.errors import InvalidRequestError
from engine.request.outputs import FinishReason
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence
from tests.engine.engines import (
    Ask,
    Result,
    TinyModels,
    check_nothing_leaked,
    make_engine,
    run_all,
    strategy_context,
    tokens,
)
from tests.engine.tiny_diffusion import KINDS, twin_diffusion

NUM_DRAFTED = 4
NUM_TOKENS = 1 + 3 * (NUM_DRAFTED + 1)  # the prompt's own token, then three full steps
LENGTHS = (5, 1, 33, 70)

Spoil = Callable[[list[int]], list[int]]


def right(draft: list[int]) -> list[int]:
    return draft


def wrong(draft: list[int]) -> list[int]:
    return [(token + 1) % 200 for token in draft]


def wrong_at_first(draft: list[int]) -> list[int]:
    """All that follows is right, and must not count."""
    return wrong(draft[:1]) + draft[1:]


def lagging(draft: list[int]) -> list[int]:
    """At each place the token that belongs to the next."""
    return draft[1:] + draft[:1]


class Foretold(Deer):
    """Drafts what each sequence's answer is known to be, or that spoilt; verifies as ever."""

    def __init__(self, models: TinyModels, known: dict[str, tuple[list[int], Spoil]]) -> None:
        super().__init__(strategy_context(models))
        self.known = known
        self.committed: list[list[int]] = []  # how many tokens each sequence got, step by step
        self.verified: list[int] = []  # rows, step by step

    def propose(self, sequences: Seq[Sequence], drafted: Seq[RowsOutput]) -> list[Rows]:
        return self.verify(sequences, {seq.sequence_id: self._foretell(seq) for seq in sequences})

    def accept(self, outputs: Seq[RowsOutput]) -> list[list[int]]:
        self.verified.append(sum(len(output.rows.token_ids) for output in outputs))
        commits = super().accept(outputs)
        self.committed.append([len(commit) for commit in commits])
        return commits

    def _foretell(self, sequence: Sequence) -> list[int]:
        answer, spoil = self.known[sequence.sequence_id]
        start = sequence.num_output_tokens
        return spoil(answer[start : start + min(NUM_DRAFTED, sequence.num_remaining - 1)])


def ask(length: int, temperature: float = 1.0, num_tokens: int = NUM_TOKENS) -> Ask:
    params = SamplingParams(
        seed=length, temperature=temperature, max_tokens=num_tokens, ignore_eos=True
    )
    return Ask(tokens(length, length), params)


def alone(models: TinyModels, asks: Seq[Ask]) -> list[Result]:
    return [run_all(make_engine(models), [one])[0] for one in asks]


def foretold(
    models: TinyModels, asks: Seq[Ask], spoils: Seq[Spoil]
) -> tuple[list[Result], Foretold, list[Result]]:
    """What a batch gives whose answers are known, the strategy, and what each gives alone."""
    expected = alone(models, asks)
    answers = [result.token_ids for result in expected]
    known = {str(i): pair for i, pair in enumerate(zip(answers, spoils, strict=True))}
    strategy = Foretold(models, known)
    engine = make_engine(models, extra={"foretold": strategy})
    results = run_all(engine, [replace(one, mode="foretold") for one in asks])
    check_nothing_leaked(engine)
    return results, strategy, expected


def histogram(result: Result) -> dict[int, int]:
    assert result.summary is not None
    return {j: n for j, n in enumerate(result.summary.acceptance_histogram) if n}


def texts(results: Seq[Result]) -> list[list[int]]:
    return [result.token_ids for result in results]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_accepts_nothing_because_another_row_of_the_batch_does(
    models: TinyModels, temperature: float
) -> None:
    """Once: everybody accepted as many as the luckiest of the batch."""
    asks = [ask(length, temperature) for length in LENGTHS]
    results, _, expected = foretold(models, asks, [right, wrong, wrong_at_first, right])
    assert texts(results) == texts(expected)
    assert [max(histogram(result)) for result in results] == [4, 0, 0, 4]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_right_draft_is_judged_by_the_row_before_each_token(
    models: TinyModels, temperature: float
) -> None:
    """Once: logits were read one position late, and right drafts were refused."""
    results, _, _ = foretold(models, [ask(6, temperature)], [right])
    assert histogram(results[0]) == {NUM_DRAFTED: 3}


def test_a_draft_that_lags_one_position_is_refused(models: TinyModels) -> None:
    """What the fault above would have called right."""
    results, _, expected = foretold(models, [ask(6)], [lagging])
    assert texts(results) == texts(expected)
    assert NUM_DRAFTED not in histogram(results[0])


def test_a_refused_draft_still_commits_the_verifiers_token(models: TinyModels) -> None:
    """Once: a step without an accepted token gave nothing, and three such were burnt."""
    results, strategy, expected = foretold(models, [ask(6)], [wrong])
    assert texts(results) == texts(expected)
    assert strategy.committed == [[1]] * (NUM_TOKENS - 1)


def test_an_accepted_draft_brings_one_token_more(models: TinyModels) -> None:
    _, strategy, _ = foretold(models, [ask(6)], [right])
    assert strategy.committed == [[NUM_DRAFTED + 1]] * 3


@pytest.mark.parametrize("mode", ["ar", "deer"])
def test_short_prompts_beside_long_ones_give_what_they_give_alone(
    models: TinyModels, mode: str
) -> None:
    """Once: shorter prompts were filled up with masks, and read back at the wrong place."""
    asks = [replace(ask(length), mode=mode) for length in LENGTHS]
    expected = alone(models, [replace(one, mode="ar") for one in asks])
    engine = make_engine(models, max_step_tokens=256)  # all prompts in the first step
    assert texts(run_all(engine, asks)) == texts(expected)


def test_a_batch_of_different_temperatures_is_not_averaged(models: TinyModels) -> None:
    asks = [ask(7, 0.0), ask(8, 1.8), ask(9, 0.4)]
    assert texts(run_all(make_engine(models), asks)) == texts(alone(models, asks))


def test_what_was_read_once_is_not_read_again(models: TinyModels) -> None:
    """Once: every step ran drafter and verifier over the whole text, whatever the cache's name."""
    _, strategy, _ = foretold(models, [ask(70)], [wrong])
    drafted = [min(NUM_DRAFTED, left - 1) for left in range(NUM_TOKENS - 1, 0, -1)]
    assert strategy.verified == [1 + length for length in drafted]


def test_an_end_inside_an_accepted_draft_ends_the_text_there(models: TinyModels) -> None:
    """Once: only the last token of a step was looked at."""
    plain = ask(6)
    answer = alone(models, [plain])[0].token_ids
    at = next(i for i in range(2, NUM_DRAFTED) if answer[i] not in answer[:i])
    stopping = replace(plain, params=replace(plain.params, stop_token_ids=(answer[at],)))
    known = {"0": (answer, right)}
    engine = make_engine(models, extra={"foretold": Foretold(models, known)})
    result = run_all(engine, [replace(stopping, mode="foretold")])[0]
    assert result.token_ids == alone(models, [stopping])[0].token_ids
    assert len(result.token_ids) in (at, at + 1)
    assert result.finish_reason is FinishReason.STOP
    check_nothing_leaked(engine)


@pytest.mark.parametrize("mode", ["adaptive", "DEER"])
def test_a_mode_that_is_not_there_is_refused_and_not_replaced(
    models: TinyModels, mode: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_engine(models).make_sequence("0", [1], SamplingParams(), mode=mode)
    assert caught.value.param == "mode"


def test_what_is_handed_on_is_the_thing_itself() -> None:
    """Once: the scheduler's module kept a prefix cache of its own."""
    assert continuous_batching.PrefixCache is PrefixCache
    assert PrefixCache.__module__ == "engine.cache.prefix_cache"
    assert set(continuous_batching.__all__) == {
        "BatcherConfig",
        "BatcherStats",
        "ContinuousBatchingEngine",
        "PrefixCache",
        "RequestBatcher",
    }


@pytest.mark.parametrize("mode", ["semi_ar", "diffusion", "apd"])
def test_short_canvases_beside_long_ones_are_what_they_are_alone(
    models: TinyModels, mode: str
) -> None:
    """Once: masks stood between a short prompt and its answer, and the wrong slice came back."""
    both = twin_diffusion(models, KINDS["dream"])
    asks = [replace(ask(length, num_tokens=8), mode=mode) for length in LENGTHS]
    engine = make_engine(both, max_step_tokens=256)
    assert texts(run_all(engine, asks)) == texts(alone(both, asks))


@dataclass
class Counts(BaseStats):
    num_events: int = 0
    by_length: list[int] = field(default_factory=list)


def test_reset_statistics_can_be_counted_on() -> None:
    """Once: fields with a factory were reset to the marker that there is no default."""
    first, second = Counts(), Counts()
    first.num_events = 3
    first.by_length.append(1)
    first.reset()
    first.by_length.append(7)
    assert (first.num_events, first.by_length, second.by_length) == (0, [7], [])
