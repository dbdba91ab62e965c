"""Drafts whose tokens hang on each other: drawn as defined, served losslessly, saved apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.decoding.noise import gumbel
from engine.models.dflash import HEADS_FILE, DFlashDrafter, load_drafter, save_drafter
from engine.models.draft_heads import MarkovHead
from engine.models.token_sampler import Pick, TokenSampler
from engine.request.sampling_params import SamplingParams
from engine.training.drafter import build_drafter, start_from
from engine.training.losses import confidence_loss, decaying_weights, survival_weights
from tests.engine.engines import (
    TinyModels,
    batcher_of,
    check_nothing_leaked,
    count_drafts,
    make_engine,
    run_all,
    tokens,
)
from tests.engine.test_token_identity import ASKS
from tests.engine.tiny_models import VOCAB_SIZE


@pytest.fixture(scope="module")
def chained(models: TinyModels) -> TinyModels:
    return with_markov_head(models)


def with_markov_head(models: TinyModels) -> TinyModels:
    """The tiny pair with a Markov head that has much to say."""
    config = replace(models.drafter.config, markov_rank=8, has_confidence=True)
    torch.manual_seed(5)
    drafter = DFlashDrafter(config).eval()
    drafter.load_state_dict(models.drafter.state_dict(), strict=False)
    assert drafter.markov is not None
    torch.nn.init.normal_(drafter.markov.lm_head.weight, std=0.5)
    return replace(models, drafter=drafter)


@pytest.mark.parametrize("mode", ["greedy", "sampled", "mixed"])
def test_chained_tokens_are_drawn_left_to_right(models: TinyModels, mode: str) -> None:
    temperatures = {"greedy": (0, 0, 0), "sampled": (0.7, 1, 2), "mixed": (0, 1, 1e-6)}[mode]
    counts, anchors = (3, 1, 4), (17, 3, 99)
    engine = make_engine(models)
    picks = [
        Pick(
            engine.make_sequence(str(i), tokens(5, i), SamplingParams(temperature=t, seed=40 + i)),
            first_position=2 * i,
            num_rows=count,
            is_drafter=True,
        )
        for i, (t, count) in enumerate(zip(temperatures, counts, strict=True))
    ]
    head = MarkovHead(VOCAB_SIZE, 8)
    torch.nn.init.normal_(head.lm_head.weight, std=2.0)
    logits = torch.randn(sum(counts), VOCAB_SIZE)
    sampler = TokenSampler(models.tokenizer, torch.device("cpu"))
    with torch.inference_mode():
        drawn = sampler.sample_chained(logits, picks, anchors, head.bias)
        rows = iter(logits)
        for i, (pick, anchor) in enumerate(zip(picks, anchors, strict=True)):
            previous, expected = anchor, []
            for position in range(pick.first_position, pick.first_position + pick.num_rows):
                at = torch.tensor([position])
                noise = gumbel(torch.tensor([40 + i]), 0 * at, 0 * at, at, VOCAB_SIZE)[0]
                biased = next(rows) + head.bias(torch.tensor([previous]))[0]
                previous = int((biased + temperatures[i] * noise).argmax())
                expected.append(previous)
            assert drawn[i] == expected


def test_a_filter_holds_for_chained_drafts(models: TinyModels) -> None:
    engine = make_engine(models)
    params = SamplingParams(temperature=5.0, top_k=2, seed=1)
    pick = Pick(engine.make_sequence("a", tokens(5, 0), params), 0, 64, is_drafter=True)
    logits = torch.randn(64, VOCAB_SIZE)
    sampler = TokenSampler(models.tokenizer, torch.device("cpu"))
    head = MarkovHead(VOCAB_SIZE, 4)
    with torch.inference_mode():
        (drawn,) = sampler.sample_chained(logits, [pick], [0], head.bias)
    best = logits.topk(2).indices.tolist()
    assert all(token in pair for token, pair in zip(drawn, best, strict=True))
    assert any(token != pair[0] for token, pair in zip(drawn, best, strict=True))


def test_chained_drafts_change_no_token(models: TinyModels, chained: TinyModels) -> None:
    """Penalties, filters and plain decoding in one batch, and too few pages for all of it."""
    ways = [("deer", None), ("deer", 1), ("ar", None), ("deer", 4)]
    asks = []
    for index, one in enumerate(ASKS):
        mode, draft_length = ways[(index + index // 8) % len(ways)]
        asks.append(replace(one, mode=mode, draft_length=draft_length))
    alone = [run_all(make_engine(models, prefix_cache=False), [one])[0] for one in ASKS]
    engine = make_engine(chained, num_pages=32)
    together = run_all(engine, asks)
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]
    accepted, refused = count_drafts(together)
    assert accepted and refused
    assert count_drafts(run_all(make_engine(models), asks)) != (accepted, refused), "no say"
    assert batcher_of(engine).stats.num_preemptions
    check_nothing_leaked(engine)


def test_heads_are_saved_beside_the_published_tensors(chained: TinyModels, tmp_path: Path) -> None:
    save_drafter(chained.drafter, tmp_path, torch.float32)
    loaded = load_drafter(tmp_path)
    for name, weight in chained.drafter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    published = load_file(tmp_path / "model.safetensors")
    assert not [name for name in published if name.startswith(("markov", "confidence"))]
    plain = DFlashDrafter(replace(chained.drafter.config, markov_rank=0, has_confidence=False))
    save_drafter(plain, tmp_path)
    assert not (tmp_path / HEADS_FILE).exists()
    assert load_drafter(tmp_path).markov is None


def test_position_weights_count_what_hangs_on_a_mask() -> None:
    held = torch.tensor([[True, True, True], [True, False, False]])
    probs = torch.tensor([[1.0, 0.0, 0.6], [0.2, 0.0, 0.0]])
    # smoothed: 1, 0.5, 0.8 -> products 1, 0.5, 0.4 -> sums from the back
    expected = torch.tensor([[1.9, 0.9, 0.4], [0.6, 0.0, 0.0]])
    torch.testing.assert_close(survival_weights(probs, held), expected)
    falling = decaying_weights(probs, held)
    assert falling[0, 0] == 1 and falling[0, 0] > falling[0, 1] > falling[0, 2] > falling[1, 1] == 0


def test_confidence_is_taught_the_best_chance_of_acceptance() -> None:
    draft, target = torch.randn(1, 6).expand(2, 6), torch.randn(2, 6)
    overlap = torch.minimum(draft.softmax(-1), target.softmax(-1)).sum(-1)
    log_odds = torch.logit(overlap).requires_grad_()
    confidence_loss(log_odds, draft, target).sum().backward()
    assert log_odds.grad is not None
    torch.testing.assert_close(log_odds.grad, torch.zeros(2), atol=1e-6, rtol=0)


def test_a_drafter_starts_from_anothers_weights(chained: TinyModels, models: TinyModels) -> None:
    fresh = build_drafter(chained.drafter.config, seed=3)
    start_from(fresh, models.drafter)
    for name, weight in models.drafter.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], weight), name
    assert fresh.markov is not None
    assert not fresh.markov.lm_head.weight.any(), "a head that was not there says nothing yet"
    other = build_drafter(replace(models.drafter.config, num_layers=2), seed=3)
    with pytest.raises(ValueError, match="--init-drafter"):
        start_from(other, models.drafter)
