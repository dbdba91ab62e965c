"""Lanes on one engine: each goes on where it stood, and writes what it would have written alone."""

from __future__ import annotations

from itertools import islice

from benchmarks.lanes import Lane, encoded
from benchmarks.prompts import generate
from engine.dfastllm_engine import DFastLLMEngine
from engine.request.options import NO_OPTIONS, GenerationOptions
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import Ask, TinyModels, check_nothing_leaked, make_engine, run_all

PROMPTS = list(islice(generate(0), 3))
PROMPT_TOKENS = 20


def make_lanes(engine: DFastLLMEngine) -> tuple[Lane, Lane]:
    lanes = (
        Lane("ar", engine, "ar", NO_OPTIONS),
        Lane("fixed 2", engine, "deer", GenerationOptions(draft_length=2)),
    )
    for lane in lanes:
        lane.open(PROMPTS, PROMPT_TOKENS, temperature=0.0)
    return lanes


def test_lanes_that_take_turns_write_what_each_would_write_alone(models: TinyModels) -> None:
    engine = make_engine(models, max_model_len=512)
    lanes = make_lanes(engine)
    for _ in range(4):
        for lane in lanes:
            lane.advance(12)
    params = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
    prompts = [encoded(engine, prompt)[-PROMPT_TOKENS:] for prompt in PROMPTS]
    alone = run_all(make_engine(models), [Ask(prompt, params) for prompt in prompts])
    for lane in lanes:
        for sequence, result in zip(lane._running, alone, strict=True):
            count = sequence.num_output_tokens
            assert count > 8
            assert sequence.output_token_ids == result.token_ids[:count]


def test_all_lanes_get_through_the_same_number_of_tokens(models: TinyModels) -> None:
    lanes = make_lanes(make_engine(models, max_model_len=512))
    begun = [sum(seq.num_output_tokens for seq in lane._running) for lane in lanes]
    for _ in range(10):
        for lane in lanes:
            piece = lane.advance(7)
            assert 0 < piece["num_tokens"] <= 7 + 3 * 3
            assert piece["seconds"] > 0
    for lane, before in zip(lanes, begun, strict=True):
        written = sum(seq.num_output_tokens for seq in lane._running) - before
        assert 70 <= written < 70 + 3 * 3, "beyond its share a lane writes one step at most"


def test_a_closed_lane_holds_nothing_and_an_open_one_is_at_rest(models: TinyModels) -> None:
    engine = make_engine(models, max_model_len=512)
    lanes = make_lanes(engine)
    assert not engine.has_work, "nobody is on the stage between turns"
    assert engine.metrics()["num_pages_held"] > 0
    for lane in lanes:
        lane.close()
    check_nothing_leaked(engine)
