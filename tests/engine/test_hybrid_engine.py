"""The modes as Python objects: texts of the AR model, statistics that only hold what was seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.base import BaseStats, Generator, HasStats
from engine.entropy_controller import EntropyConfig
from engine.hybrid_engine import (
    APDDecoder,
    HybridConfig,
    HybridEngine,
    SemiAREngine,
    SpecDiffEngine,
)
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


def test_every_face_is_a_generator_with_statistics_and_leaves_its_settings_alone() -> None:
    """Once: the modes wrote what they needed into the settings that the caller had given."""
    config = HybridConfig(device="cpu", max_model_len=128, max_batch_size=3)
    before = config.to_dict()
    modes = {HybridEngine: "deer", SpecDiffEngine: "spec_diff", APDDecoder: "apd"}
    for kind, mode in {**modes, SemiAREngine: "semi_ar"}.items():
        one = kind(config=config)
        assert isinstance(one, Generator) and isinstance(one, HasStats)
        texts = one.generate(PROMPTS, PARAMS)
        assert len(texts) == 3 and all(texts)
        assert texts == one.engine.generate(PROMPTS, PARAMS, mode=mode)
        assert isinstance(one.stats, BaseStats) and one.get_stats()["num_output_tokens"] == 36
        one.reset_stats()
        assert not any(one.get_stats().values())
    assert config.to_dict() == before


def test_drafts_are_cut_by_their_entropy_where_the_settings_say_so(models: TinyModels) -> None:
    settings = {"entropy": {"low": 0.1, "high": 0.2}, "device": "cpu", "max_model_len": 128}
    config = HybridConfig.from_dict(settings)
    assert config.entropy == EntropyConfig(0.1, 0.2)
    assert HybridConfig.from_dict(config.to_dict()) == config
    one = HybridEngine(models.drafter_path, models.verifier_path, None, config)
    assert one.generate(PROMPTS, PARAMS) == one.generate(PROMPTS, PARAMS, mode="ar")
    assert "deer_entropy_num_cut_tokens" in one.engine.get_stats()


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
        ({"entropy": {"low": 3.0}}, "high must be above low"),
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
