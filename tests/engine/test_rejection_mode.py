"""`acceptance="rejection"`: the verifier's distribution by p / q, whoever drafts."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch

from engine.dfastllm_engine import DFastLLMEngine
from engine.entropy_controller import EntropyConfig
from engine.generation.deer import Deer
from engine.models.packing import Span
from engine.request.errors import InvalidRequestError
from engine.request.options import Acceptance, GenerationOptions
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import (
    Ask,
    TinyModels,
    check_nothing_leaked,
    count_drafts,
    make_engine,
    run_all,
    strategy_context,
    tokens,
)
from tests.engine.test_draft_heads import with_markov_head
from tests.engine.test_token_identity import ASKS
from tests.engine.tiny_diffusion import drafting_diffusion

ALLOWED = (5, 9, 17, 40)
"""So much bias lies on these that nothing else is ever drawn: a vocabulary of four."""
PROMPT = tokens(6, 3)
TEMPERATURE = 0.4  # low, so that the distributions of drafter and verifier lie far apart
NUM_SEEDS = 800
REJECTION = GenerationOptions(acceptance=Acceptance.REJECTION)


@pytest.fixture(scope="module")
def drafters(models: TinyModels) -> dict[str, TinyModels]:
    """The tiny verifier with every kind of drafter that there is."""
    return {
        "plain": models,
        "chained": with_markov_head(models),
        "diffusion": replace(models, drafter=None, diffusion=drafting_diffusion()),
    }


def asks(options: GenerationOptions, num_tokens: int) -> list[Ask]:
    bias = dict.fromkeys(ALLOWED, 100.0)
    return [
        Ask(
            PROMPT,
            SamplingParams(
                seed=seed, max_tokens=num_tokens, logit_bias=bias, temperature=TEMPERATURE
            ),
            "deer",
            options=options,
        )
        for seed in range(NUM_SEEDS)
    ]


@torch.inference_mode()
def exact(engine: DFastLLMEngine, num_tokens: int) -> dict[tuple[int, ...], float]:
    """The verifier's probability of every text over the allowed tokens."""
    texts = list(itertools.product(ALLOWED, repeat=num_tokens))
    probs = dict.fromkeys(texts, 1.0)
    pages = list(range(1, 8))
    for text in texts:
        ids = [*PROMPT, *text[:-1]]
        rows = list(range(len(PROMPT) - 1, len(ids)))
        logits = engine._runner.verify([Span(ids, 0, pages)], rows)[:, list(ALLOWED)]
        logprobs = (logits / TEMPERATURE).log_softmax(-1)
        chosen = [ALLOWED.index(token_id) for token_id in text]
        probs[text] = float(logprobs[range(num_tokens), chosen].sum().exp())
    return probs


def chi_square(counts: Counter[tuple[int, ...]], probs: dict[tuple[int, ...], float]) -> float:
    """In standard deviations above what chance gives; rare texts count as one."""
    total = counts.total()
    cells = [(counts[text], total * p) for text, p in probs.items() if total * p >= 8.0]
    seen, expected = (total - sum(column) for column in zip(*cells, strict=True))
    if expected >= 8.0:
        cells.append((seen, expected))
    value = sum((observed - expected) ** 2 / expected for observed, expected in cells)
    df = len(cells) - 1
    return float((value - df) / (2 * df) ** 0.5)


@pytest.mark.parametrize("kind", ["plain", "chained", "diffusion", "prediction"])
def test_texts_come_as_often_as_the_verifier_alone_would_write_them(
    drafters: dict[str, TinyModels], kind: str
) -> None:
    """Three tokens: one of the prompt's last row, two of drafts, residuals and bonuses."""
    models = drafters["plain" if kind == "prediction" else kind]
    options = replace(REJECTION, draft_length=2)
    engine = make_engine(models, max_batch_size=64, max_step_tokens=512)
    probs = exact(engine, 3)
    if kind == "prediction":
        options = replace(REJECTION, prediction=max(probs, key=probs.__getitem__))
    results = run_all(engine, asks(options, 3))
    counts = Counter(tuple(result.token_ids) for result in results)
    assert chi_square(counts, probs) < 4.0
    accepted, refused = count_drafts(results)
    assert accepted > 30 and refused > 30, "the test proves nothing"


def test_greedy_rows_are_those_of_ar_beside_rows_that_are_drawn(models: TinyModels) -> None:
    plain = [replace(one, mode="ar") for one in ASKS]
    expected = run_all(make_engine(models), plain)
    engine = make_engine(models)
    mixed = run_all(
        engine, [replace(one, mode="deer", options=REJECTION, draft_length=3) for one in ASKS]
    )
    differs = 0
    for one, result, alone in zip(ASKS, mixed, expected, strict=True):
        if one.params.is_greedy:
            assert result.token_ids == alone.token_ids
        differs += result.token_ids != alone.token_ids
        assert result.summary is not None and result.summary.is_lossless
    assert differs > 4, "the rule is another, so drawn texts are others"
    check_nothing_leaked(engine)


def test_the_rule_accepts_more_than_the_coupled_one(models: TinyModels) -> None:
    """min(1, p / q) accepts as often as any rule can."""
    by_rule = [
        count_drafts(run_all(make_engine(models, max_batch_size=64), asks(options, 4)[:150]))
        for options in (replace(REJECTION, draft_length=2), GenerationOptions(draft_length=2))
    ]
    (accepted, refused), (coupled, _) = by_rule
    assert accepted > coupled and refused


def test_a_draft_that_p_over_q_judges_is_never_cut(models: TinyModels) -> None:
    context = replace(strategy_context(models), entropy=EntropyConfig())
    cutting = Deer(context)
    engine = make_engine(models, extra={"deer": cutting})
    drawn = [one for one in ASKS if one.params.temperature]  # greedy, both rules are one
    run_all(engine, [replace(one, mode="deer", options=REJECTION) for one in drawn])
    assert cutting.get_stats()["num_draft_tokens"] > 0
    assert cutting.get_stats()["entropy_num_cut_tokens"] == 0


def test_what_contradicts_the_rule_is_refused_by_name(models: TinyModels) -> None:
    engine = make_engine(models)
    for mode, options, param in (
        ("spec_diff", REJECTION, "acceptance"),
        ("ar", REJECTION, "acceptance"),
        ("deer", replace(REJECTION, skip_verify_confidence=0.9), "skip_verify_confidence"),
    ):
        with pytest.raises(InvalidRequestError) as refused:
            engine.make_sequence("a", PROMPT, SamplingParams(), mode=mode, options=options)
        assert refused.value.param == param
