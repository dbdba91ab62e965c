"""Statistics of every part: all of one kind, all written by something, all back at zero after."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import engine
from engine.base import BaseCache, BaseStats, Cacheable, CacheStats, Generator, HasStats
from engine.cache.arrivals import ArrivalStats
from engine.entropy_controller import EntropyStats
from engine.generation.draft_and_verify import DraftStats
from engine.hybrid_engine import HybridStats
from engine.plan_ledger import PlannerStats
from engine.request.options import NO_OPTIONS, GenerationOptions
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import Ask, TinyModels, make_engine, run_all, tokens
from tests.engine.shelf_store import ShelfStore
from tests.engine.tiny_diffusion import KINDS, twin_diffusion

SOURCES = Path(engine.__file__).parent
COUNTED_BY_THEIR_OWN_TESTS = {ArrivalStats, CacheStats, EntropyStats, HybridStats, PlannerStats}


def stats_kinds(kind: type[BaseStats] = BaseStats) -> Iterator[type[BaseStats]]:
    for below in kind.__subclasses__():
        if below.__module__.startswith("engine."):
            yield below
            yield from stats_kinds(below)


def test_whatever_is_called_statistics_is_of_the_one_kind() -> None:
    text = "".join(path.read_text("utf-8") for path in SOURCES.rglob("*.py"))
    named = set(re.findall(r"^class (\w*(?:Stats|Counts))\b", text, re.MULTILINE))
    known = {kind.__name__ for kind in stats_kinds()}
    assert named - {"BaseStats", "HasStats"} == known and DraftStats.__name__ in known


@pytest.mark.parametrize("kind", list(stats_kinds()))
def test_statistics_are_sums_and_reset_to_zero(kind: type[BaseStats]) -> None:
    """Once: ratios and guesses were fields, which could go stale or were never written at all."""
    stats = kind()
    for field in fields(kind):
        assert re.match(r"(num|sum)_|elapsed_s$", field.name), "a ratio is a property"
        setattr(stats, field.name, 7)
    assert set(stats.to_dict().values()) == {7}
    stats.reset()
    assert stats == kind() and not any(stats.to_dict().values())


def test_every_field_is_written_by_a_busy_engine(models: TinyModels) -> None:
    both = twin_diffusion(models, KINDS["ours"])
    busy = make_engine(both, num_pages=36, host_bytes=1 << 16)
    busy.use_page_store(ShelfStore())
    expected = run_all(make_engine(models), [ask(0, "ar")])[0].token_ids
    foretold = GenerationOptions(prediction=tuple(expected))
    drafted = GenerationOptions(draft_length=3)
    plain = GenerationOptions(draft_length=0)
    others = [ask(seed, mode) for seed, mode in enumerate(("ar", "spec_diff", "semi_ar") * 2)]
    others.append(ask(2, "deer", plain))
    for _ in range(2):
        run_all(busy, [ask(0, "deer", foretold), ask(1, "deer", drafted), *others])
    counted = busy.get_stats()
    for kind in set(stats_kinds()) - COUNTED_BY_THEIR_OWN_TESTS:
        for field in fields(kind):
            found = [name for name in counted if name.endswith(field.name)]
            assert any(counted[name] for name in found), f"{kind.__name__}.{field.name}"
    busy.reset_stats()
    gauges = {"num_pages", "num_pages_held", "num_requests_running", "num_requests_waiting"}
    gauges |= {"num_host_pages", "num_host_bytes", "num_shelved_pages"}
    of_planner = re.compile(r"(deer|spec_diff)_planner_(un)?drafted_(step_s|tokens_per_s)$")
    counts = {name: n for name, n in busy.get_stats().items() if not of_planner.match(name)}
    assert len(counts) + 8 == len(counted)
    assert not any(n for name, n in counts.items() if name not in gauges)


def ask(seed: int, mode: str, options: GenerationOptions = NO_OPTIONS) -> Ask:
    params = SamplingParams(seed=seed, max_tokens=20, ignore_eos=True)
    return Ask(tokens(30, seed), params, mode, options=options)


def test_the_protocols_hold_at_run_time_for_whoever_should_keep_them(models: TinyModels) -> None:
    made = make_engine(twin_diffusion(models, KINDS["ours"]))
    batching = made.batching
    strategies = batching.batcher.strategies
    for one in (made, batching, strategies["deer"], strategies["spec_diff"]):
        assert isinstance(one, HasStats)
        assert isinstance(one.get_stats(), dict)
    assert isinstance(made, Generator) and not isinstance(batching, Generator)
    assert isinstance(made._grammars._compiled, BaseCache)
    assert isinstance(made._grammars._compiled, Cacheable)
