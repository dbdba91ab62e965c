"""Table `batching`: what each way of batching lets in, and from when on latency counts."""

from __future__ import annotations

from benchmarks.batching import ONE, Arrival, Log, policies, serve
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import TinyModels, make_engine, tokens

LENGTHS = (12, 2, 2, 2, 2)


def served(models: TinyModels, name: str, gap_s: float = 0.0) -> Log:
    engine = make_engine(models)
    arrivals = []
    for index, length in enumerate(LENGTHS):
        params = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True)
        sequence = engine.make_sequence(str(index), tokens(5, seed=index), params, mode="ar")
        arrivals.append(Arrival(sequence, index * gap_s))
    return serve(engine, arrivals, policies(2)[name])


def test_every_way_serves_every_request_to_its_end(models: TinyModels) -> None:
    for name in policies(2):
        log = served(models, name)
        assert log.num_tokens == sum(LENGTHS)
        assert len(log.done_s) == len(log.first_s) == len(LENGTHS)


def test_one_at_a_time_runs_one(models: TinyModels) -> None:
    assert set(served(models, ONE).num_running) == {1}


def test_a_free_place_is_taken_at_once_or_when_the_batch_has_ended(models: TinyModels) -> None:
    continuous, static = (served(models, name) for name in ("continuous, 2", "static, 2"))
    # Four short ones pass beside the long one, or wait for it: 12 steps, or 12 and two batches.
    assert continuous.num_running == [2] * 8 + [1] * 4
    assert static.num_running == [2] * 2 + [1] * 10 + [2] * 2 + [1] * 2


def test_latency_counts_from_arrival_and_nothing_starts_before_it(models: TinyModels) -> None:
    log = served(models, "continuous, 2", gap_s=0.2)
    assert log.seconds > 0.8, "the last request came after 0.8 s"
    assert all(0 < log.first_s[name] <= log.done_s[name] for name in log.done_s)
    assert sum(log.done_s.values()) < log.seconds * len(LENGTHS)
