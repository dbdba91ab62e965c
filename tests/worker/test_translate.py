"""Jobs to sequences and outputs to deltas, without a queue."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.request.errors import InvalidRequestError
from engine.request.grammar import Grammar, GrammarKind
from engine.request.options import NO_OPTIONS
from engine.request.outputs import SequenceSummary, StepTrace
from tests.fakes import FakeEngine, FakeSequence
from tests.worker_bench import QUEUE, make_job, texts_of
from worker.job_store import Claim
from worker.running_job import RunningJob
from worker.translate import draft_stats, generation_options, rejection, sampling_params
from worker.wire import messages
from worker.wire.messages import (
    Delta,
    DraftStats,
    Finished,
    GenerateJob,
    GenerationStats,
    Options,
    PredictionStats,
    Prompts,
    Usage,
)


def claim(job: GenerateJob, deltas: list[Delta] | None = None, attempt: int = 1) -> Claim:
    return Claim(job, f"execution-{attempt}", QUEUE, attempt, deltas or [])


def run(engine: FakeEngine, job: RunningJob, num_steps: int = 10_000) -> list[Delta]:
    for sequence in job.sequences:
        engine.add(sequence)
    deltas = []
    while engine.has_work and num_steps:
        deltas += [delta for output in engine.step() for delta in job.take([output])]
        num_steps -= 1
    return deltas


def test_every_sampling_field_reaches_the_engine() -> None:
    values = {
        "seed": 3,
        "max_tokens": 9,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "stop": ["x"],
        "stop_token_ids": [4],
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.1,
        "logit_bias": {5: 1.5},
        "logprobs": 2,
        "ignore_eos": True,
    }
    params = sampling_params(make_job("job", **values))
    got = {name: getattr(params, name) for name in values}
    assert got == values | {"stop": ("x",), "stop_token_ids": (4,)}


def test_a_grammar_reaches_the_engine_with_the_name_of_its_field() -> None:
    given = messages.Grammar("regex", "a+", "guided_regex")
    grammar = sampling_params(make_job("job", grammar=given)).grammar
    assert grammar == Grammar(GrammarKind.REGEX, "a+")
    assert grammar.param == "guided_regex"
    assert sampling_params(make_job("job")).grammar is None


def test_a_grammar_of_a_later_kind_is_refused() -> None:
    later = messages.Grammar("tags", "x", "structured_outputs.tags")
    with pytest.raises(InvalidRequestError, match="'tags'") as caught:
        sampling_params(make_job("job", grammar=later))
    assert caught.value.param == "structured_outputs.tags"


def test_prompt_logprobs_are_wanted_where_echo_and_logprobs_are() -> None:
    echoed = Prompts(["p"], echo=True)
    assert sampling_params(make_job("job", input=echoed, logprobs=0)).prompt_logprobs
    assert not sampling_params(make_job("job", input=echoed)).prompt_logprobs
    assert not sampling_params(make_job("job", logprobs=0)).prompt_logprobs


def test_each_choice_is_its_own_sequence_of_its_prompt() -> None:
    job = RunningJob(claim(make_job("job", input=Prompts(["a", "b"]), n=2)), FakeEngine())
    places = [
        (seq.prompt_index, seq.choice) for seq in job.sequences if isinstance(seq, FakeSequence)
    ]
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len({sequence.sequence_id for sequence in job.sequences}) == 4


def test_the_cache_is_parted_by_tenant_and_by_salt() -> None:
    def salt(tenant: str, cache_salt: str) -> str:
        job = make_job("job", tenant=tenant, cache_salt=cache_salt)
        (sequence,) = RunningJob(claim(job), FakeEngine()).sequences
        assert isinstance(sequence, FakeSequence)
        return sequence.cache_salt

    assert len({salt("a", ""), salt("b", ""), salt("a", "b"), salt("ab", "")}) == 4


def test_one_wrong_choice_rejects_the_whole_job() -> None:
    prompts = Prompts(["fits", "x" * 5000])
    with pytest.raises(InvalidRequestError, match="too long"):
        RunningJob(claim(make_job("job", input=prompts)), FakeEngine())


def test_deltas_are_numbered_over_all_choices() -> None:
    job = RunningJob(claim(make_job("job", n=3, max_tokens=4)), FakeEngine())
    deltas = run(FakeEngine(), job)
    assert [delta.index for delta in deltas] == list(range(12))
    assert job.finished().num_deltas == 12


def test_the_first_delta_of_a_choice_echoes_the_prompt_with_its_logprobs() -> None:
    job = make_job("job", input=Prompts(["abc"], echo=True), logprobs=1, max_tokens=2)
    first, second = run(FakeEngine(), RunningJob(claim(job), FakeEngine()))
    assert first.text.startswith("abc")
    assert len(first.text) == 4
    assert [one.logprob for one in first.logprobs or []] == [None, -0.5, -0.5, -0.5]
    assert len(second.text) == len(second.logprobs or []) == 1
    assert len(first.token_ids) == 1  # the prompt is no output: a rerun must not replay it


@pytest.mark.parametrize("num_steps", [0, 1, 3, 7])
def test_a_rerun_continues_text_and_numbering_where_the_log_ends(num_steps: int) -> None:
    job = make_job("job", n=2, input=Prompts(["abc"], echo=True), logprobs=0, max_tokens=7)
    whole = run(FakeEngine(), RunningJob(claim(job), FakeEngine()))
    logged = run(FakeEngine(), RunningJob(claim(job), FakeEngine()), num_steps)
    rerun = RunningJob(claim(job, logged, attempt=2), FakeEngine())
    rest = run(FakeEngine(), rerun)
    assert logged + rest == whole
    assert rerun.finished().num_deltas == len(whole)
    assert rerun.finished().usage.num_output_tokens == 14
    assert rerun.finished().attempt == 2


def test_a_choice_that_ended_in_the_log_is_not_run_again() -> None:
    job = make_job("job", n=2, max_tokens=3)
    logged = [Delta("job", 0, 1, [97, 98, 99], "abc", "length")]
    rerun = RunningJob(claim(job, logged, attempt=2), FakeEngine())
    assert len(rerun.sequences) == 1
    rest = run(FakeEngine(), rerun)
    assert texts_of(rest).keys() == {0}
    assert rerun.is_finished
    assert rerun.finished().usage == Usage(len("prompt of job"), 6, 1)


def test_a_job_that_nobody_streams_speaks_in_longer_deltas_and_loses_none_at_a_flush() -> None:
    job = make_job("job", stream=False, max_tokens=20)
    running = RunningJob(claim(job), FakeEngine())
    deltas = run(FakeEngine(), running, num_steps=11)
    assert [len(delta.token_ids) for delta in deltas] == [8]
    assert [len(delta.token_ids) for delta in running.flush()] == [3]
    assert running.flush() == []


def test_speculation_is_summed_over_sequences_of_different_depth() -> None:
    summaries = [
        SequenceSummary(1, 1, 0, num_draft_tokens=4, acceptance_histogram=(1, 2)),
        SequenceSummary(1, 1, 0, num_draft_tokens=6, acceptance_histogram=(0, 1, 3)),
    ]
    assert draft_stats(summaries) == DraftStats(10, [1, 3, 3])
    assert draft_stats([SequenceSummary(1, 1, 0, 0, ())]) is None


def test_every_knob_reaches_the_engine() -> None:
    values: dict[str, Any] = {
        "denoising_steps": 4,
        "block_length": 8,
        "confidence_threshold": 0.5,
        "unmasking_factor": 1.5,
        "remasking": "margin",
        "canvas_cache": "prefix",
        "acceptance": "rejection",
        "skip_verify_confidence": 0.75,
    }
    given = Options(**values, prediction="yes", suffixes=["a", "bc"])
    job = RunningJob(claim(make_job("job", draft_length=3, options=given)), FakeEngine())
    (sequence,) = job.sequences
    assert isinstance(sequence, FakeSequence)
    options = sequence.options
    assert {name: getattr(options, name) for name in values} == values
    assert (options.draft_length, options.prediction) == (3, tuple(b"yes"))
    assert options.suffixes == (tuple(b"a"), tuple(b"bc"))


def test_a_job_without_knobs_leaves_all_to_the_engine() -> None:
    assert generation_options(make_job("job"), FakeEngine().tokenizer) == NO_OPTIONS


def test_a_knob_of_a_later_version_is_refused_by_name() -> None:
    job = make_job("job", options=Options(acceptance="typical"))
    with pytest.raises(InvalidRequestError, match="coupled, rejection") as caught:
        generation_options(job, FakeEngine().tokenizer)
    assert caught.value.param == "acceptance"


def test_a_refusal_has_the_clients_name_of_the_field() -> None:
    assert rejection("job", InvalidRequestError("no", "suffixes")).param == "suffix"
    assert rejection("job", InvalidRequestError("no", "seed")).param == "seed"


def test_an_ending_says_how_the_job_was_generated() -> None:
    def ending(**fields: Any) -> Finished:
        job = RunningJob(claim(make_job("job", n=2, max_tokens=3, **fields)), FakeEngine())
        run(FakeEngine(), job)
        return job.finished()

    plain = ending()
    assert (plain.generation, plain.prediction) == (GenerationStats("deer", True, 6), None)
    lossy = ending(mode="ar", options=Options(skip_verify_confidence=0.5))
    assert lossy.generation == GenerationStats("ar", False, 6)
    predicted = ending(options=Options(prediction="four"))
    assert predicted.prediction == PredictionStats(num_accepted=4, num_rejected=4)


def test_the_last_delta_of_a_choice_tells_its_holes_apart() -> None:
    given = Options(suffixes=["a", "b"])
    job = RunningJob(claim(make_job("job", max_tokens=3, options=given)), FakeEngine())
    *others, last = run(FakeEngine(), job)
    assert [delta.holes for delta in others] == [None, None]
    assert last.holes == ["".join(delta.text for delta in [*others, last]), ""]


def test_steps_taken_together_are_one_delta_of_a_stream() -> None:
    job = RunningJob(claim(make_job("gathered", max_tokens=6)), engine := FakeEngine())
    apart = RunningJob(claim(make_job("gathered", max_tokens=6)), FakeEngine())
    expected = run(FakeEngine(), apart)
    (sequence,) = job.sequences
    engine.add(sequence)
    outputs = [output for _ in range(6) for output in engine.step()]
    assert job.take(outputs[:1]) == expected[:1]
    gathered, last = job.take(outputs[1:4]), job.take(outputs[4:])
    assert [(delta.index, len(delta.token_ids)) for delta in gathered + last] == [(1, 3), (2, 2)]
    assert texts_of(expected[:1] + gathered + last) == texts_of(expected)
    assert gathered[0].finish_reason is None
    assert last[0].finish_reason == "length"


def test_logprobs_of_steps_taken_together_are_all_there() -> None:
    wanted = make_job("job", max_tokens=4, logprobs=1)
    job = RunningJob(claim(wanted), engine := FakeEngine())
    engine.add(job.sequences[0])
    (delta,) = job.take([output for _ in range(4) for output in engine.step()])
    assert delta.logprobs is not None
    assert [one.token_id for one in delta.logprobs] == delta.token_ids


def test_who_wants_to_see_the_steps_gets_a_delta_for_each() -> None:
    wanted = msgspec.structs.replace(
        make_job("job", max_tokens=4), options=Options(shows_steps=True)
    )
    job = RunningJob(claim(wanted), engine := FakeEngine())
    engine.add(job.sequences[0])
    trace = StepTrace(drafted=(97,), num_accepted=1)
    outputs = [one._replace(trace=trace) for _ in range(3) for one in engine.step()]
    deltas = job.take([outputs[0], outputs[1]._replace(trace=None), outputs[2]])
    assert [len(delta.token_ids) for delta in deltas] == [1, 1, 1]
    assert [delta.trace is not None for delta in deltas] == [True, False, True]
