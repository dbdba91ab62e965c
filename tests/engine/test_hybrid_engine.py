"""The modes as Python objects: texts of the AR model, statistics that only hold what was seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.base import Generator, HasStats
from engine.hybrid_engine import HybridConfig, HybridEngine
from engine.models.causal_lm import UnsupportedModelError
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import TinyModels

PROMPTS = ["Once upon a time", "I would like to", "a"]
PARAMS = SamplingParams(max_tokens=12, temperature=1.0, seed=3, ignore_eos=True)


@pytest.fixture(scope="module")
def hybrid(models: TinyModels) -> HybridEngine:
    config = HybridConfig(draft_length=3, device="cpu", max_model_len=128)
    return HybridEngine(models.drafter_path, models.verifier_path, None, config)


def test_a_hybrid_engine_writes_the_texts_of_its_ar_model_and_counts_what_it_did(
    hybrid: HybridEngine,
) -> None:
    expected = hybrid.generate(PROMPTS, PARAMS, mode="ar")
    hybrid.reset_stats()
    assert hybrid.get_stats() == {**hybrid.get_stats(), "num_sequences": 0, "elapsed_s": 0.0}
    assert hybrid.generate(PROMPTS, PARAMS) == expected
    stats = hybrid.stats
    assert stats.num_sequences == 3 and stats.num_output_tokens == 36
    assert stats.num_verify_forwards and stats.num_draft_forwards
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens
    assert stats.tokens_per_forward == 36 / (stats.num_verify_forwards + stats.num_draft_forwards)
    assert hybrid.get_stats()["num_draft_tokens"] == stats.num_draft_tokens


def test_an_engine_is_a_generator_with_statistics(hybrid: HybridEngine) -> None:
    for one in (hybrid, hybrid.engine):
        assert isinstance(one, Generator)
        assert isinstance(one, HasStats)


def test_completions_say_why_they_ended_and_what_they_cost(hybrid: HybridEngine) -> None:
    for done in hybrid.complete(PROMPTS, PARAMS):
        assert len(done.token_ids) == 12 == done.summary.num_output_tokens
        assert done.finish_reason == "length"


def test_a_drafter_without_its_verifier_is_refused(models: TinyModels) -> None:
    with pytest.raises(UnsupportedModelError):
        HybridEngine(models.drafter_path, None, models.verifier_path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"acceptance": "maybe"}, "acceptance must be one of coupled, rejection"),
        ({"draft_length": -1}, "draft_length must be at least 0"),
        ({"dtype": "int3"}, "dtype must be one of"),
        ({"mode": "adaptive"}, "no field 'mode'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_by_name(
    values: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        HybridConfig.from_dict(values)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=str(tmp_path)):
        HybridEngine(None, tmp_path)
