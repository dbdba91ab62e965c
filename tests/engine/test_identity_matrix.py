"""Every lossless way of generating, side by side with every lossy one: the tokens of `ar`.

The ways are dealt out to seeds, temperatures and settings, and the whole deal is run again for each
drafting model, cache state, chunk size and batch size.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any

import pytest

from engine.entropy_controller import EntropyConfig
from engine.generation.deer import Deer
from engine.generation.spec_diff import SpecDiff
from engine.generation.strategy import GenerationStrategy
from engine.request.options import GenerationOptions as Options
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import (
    Ask,
    Result,
    TinyModels,
    batcher_of,
    check_nothing_leaked,
    make_engine,
    run_all,
    strategy_context,
    tokens,
)
from tests.engine.test_grammar_decoding import ASKS as WITHIN_GRAMMARS
from tests.engine.test_token_identity import ASKS as PLAIN
from tests.engine.test_token_identity import both_happened, same
from tests.engine.tiny_diffusion import KINDS, twin_diffusion

WAYS: dict[str, tuple[str, Options]] = {
    "ar": ("ar", Options()),
    "deer": ("deer", Options()),
    "deer of 4": ("deer", Options(draft_length=4)),
    "spec_diff": ("spec_diff", Options()),
    "spec_diff in 2": ("spec_diff", Options(draft_length=4, denoising_steps=2)),
    "spec_diff by factor": (
        "spec_diff",
        Options(draft_length=5, denoising_steps=3, unmasking_factor=1.5),
    ),
    "foretold": ("deer", Options()),
    "ar foretold": ("ar", Options()),
}
PLANNED = {"ar", "deer", "spec_diff"}
"""How much these draft hangs on what it costs here."""
TURNED: dict[str, Any] = {
    "frequency_penalty": 0.5,
    "logit_bias": {97: 1.5, 98: -1.0},
    "max_tokens": 16,
}
ASKS = [
    *PLAIN,
    *(replace(one, params=replace(one.params, **TURNED)) for one in WITHIN_GRAMMARS[::3]),
]
BESIDE = [  # what is not lossless has the same tokens in any company
    Ask(tokens(9, 1), SamplingParams(seed=1, max_tokens=n, ignore_eos=True), mode, options=options)
    for mode, n, options in (
        ("semi_ar", 16, Options()),
        ("diffusion", 7, Options(denoising_steps=5)),
        ("apd", 16, Options(apd_mix_weight=0.5, apd_lookahead=4)),
        ("apd", 16, Options(apd_threshold=0.01, apd_lookahead=4)),
    )
]


@dataclass(frozen=True)
class Deal:
    """Who drafts, in which batches, and what every request is to give."""

    models: TinyModels
    asks: list[Ask]
    names: list[str]
    """Of the way that each has been dealt; empty beside the lossless ones."""
    expected: list[Result]

    def of(self, name: str, results: Seq[Result]) -> list[Result]:
        return [one for one, dealt in zip(results, self.names, strict=True) if dealt == name]


@pytest.fixture(scope="module")
def expected(models: TinyModels) -> list[Result]:
    """Each alone, one token at a time, nothing cached."""
    return [run_all(make_engine(models, prefix_cache=False), [one])[0] for one in ASKS]


@pytest.fixture(scope="module", params=["drafter", "dream", "fast_dllm"])
def deal(models: TinyModels, expected: list[Result], request: pytest.FixtureRequest) -> Deal:
    """`deer` is drafted by the drafter where there is one, else by the diffusion model."""
    has_drafter = request.param == "drafter"
    dealt = twin_diffusion(models, KINDS["ours" if has_drafter else request.param])
    if not has_drafter:
        dealt = replace(dealt, drafter=None, drafter_path=None)
    shift = list(KINDS).index(request.param) if request.param in KINDS else 0
    asks, names = [], []
    for index, one in enumerate(ASKS):
        name = list(WAYS)[(index + index // 8 + 3 * shift) % len(WAYS)]
        mode, options = WAYS[name]
        if "foretold" in name:
            options = replace(options, prediction=foretold(expected[index].token_ids))
        asks.append(replace(one, mode=mode, options=options))
        names.append(name)
    alone = [run_all(make_engine(dealt, prefix_cache=False), [one])[0] for one in BESIDE]
    return Deal(dealt, [*asks, *BESIDE], [*names, *[""] * len(BESIDE)], [*expected, *alone])


def foretold(answer: list[int]) -> tuple[int, ...]:
    """Right, but for two tokens."""
    wrong = {len(answer) // 3, 2 * len(answer) // 3}
    return tuple((t + 1) % 200 if i in wrong else t for i, t in enumerate(answer))


VARIANTS: dict[str, dict[str, Any]] = {
    "one at a time, chunks of 7, no cache": {
        "max_batch_size": 1,
        "max_step_tokens": 7,
        "min_prefill_tokens": 7,
        "page_size": 16,
        "prefix_cache": False,
    },
    "16 at once, chunks of 1": {
        "max_batch_size": 16,
        "max_step_tokens": 1,
        "min_prefill_tokens": 1,
    },
    "8 at once, pre-emption": {"num_pages": 40},
}


def by_entropy(models: TinyModels) -> dict[str, GenerationStrategy]:
    """Drafts that are cut, and whose steps are counted, by how uncertain they are."""
    context = replace(strategy_context(models), entropy=EntropyConfig(low=2.0, high=5.0))
    return {"deer": Deer(context), "spec_diff": SpecDiff(context)}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_gives_the_tokens_of_ar_beside_all_others(deal: Deal, name: str) -> None:
    engine = make_engine(deal.models, **VARIANTS[name])
    results = run_all(engine, deal.asks)
    same(results, deal.expected)
    for way in WAYS.keys() - PLANNED:
        both_happened(deal.of(way, results), at_least=2)
    assert not any(one.summary and one.summary.num_draft_tokens for one in deal.of("ar", results))
    assert (batcher_of(engine).stats.num_preemptions > 0) == ("num_pages" in VARIANTS[name])
    check_nothing_leaked(engine)


def test_a_warm_cache_gives_every_way_the_same_tokens_and_so_does_control_by_entropy(
    deal: Deal,
) -> None:
    engine = make_engine(deal.models, extra=by_entropy(deal.models))
    same(run_all(engine, deal.asks), deal.expected)
    again = run_all(engine, deal.asks)
    same(again, deal.expected)
    num_cached = sum(one.summary.num_cached_tokens for one in again if one.summary)
    assert num_cached > 100, "the test proves nothing"
