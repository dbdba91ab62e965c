"""Pages that leave the device and come back: the same bytes, the same tokens, none lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.cache.host_page import HostPage
from engine.dfastllm_engine import DFastLLMEngine
from engine.models.attention import sdpa_backend
from engine.models.device_pages import CpuPages, DevicePages, page_tag
from engine.models.loader import load_pair
from engine.models.model_runner import ModelRunner
from engine.models.packing import Span
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import (
    CPU,
    Ask,
    TinyModels,
    batcher_of,
    check_nothing_leaked,
    make_engine,
    run_all,
    tokens,
)
from tests.engine.kernel_models import save_draft_kind, save_kind
from tests.engine.shelf_store import ShelfStore

PAGE = 4
PREFIX = 40
"""Tokens that are shared: ten whole pages."""
MB = 1 << 20


def ask(
    seed: int = 0, tail: int = 3, salt: str = "tenant", mode: str = "deer", prefix: int = PREFIX
) -> Ask:
    params = SamplingParams(seed=seed, max_tokens=8, temperature=1.0, ignore_eos=True)
    prompt = tokens(prefix, seed) + tokens(tail, 100 + tail)
    return Ask(prompt, params, mode=mode, cache_salt=salt)


def cached(engine: DFastLLMEngine, one: Ask) -> tuple[list[int], int]:
    """What a request gives, and how much of its prompt its usage says was cached."""
    result = run_all(engine, [one])[0]
    assert result.summary is not None
    return result.token_ids, result.summary.num_cached_tokens


def crowd_out(engine: DFastLLMEngine) -> None:
    """Make the device forget everything."""
    pool = batcher_of(engine).pool
    for page_id in [pool.acquire() for _ in range(pool.num_available)]:
        pool.release(page_id)
    assert len(batcher_of(engine).prefix_cache) == 0


@pytest.mark.parametrize("mode", ["ar", "deer"])
def test_what_the_device_forgets_comes_back_from_host_memory(models: TinyModels, mode: str) -> None:
    engine = make_engine(models, host_bytes=MB)
    expected = cached(make_engine(models), ask(tail=5, mode=mode))
    cached(engine, ask(mode=mode))
    crowd_out(engine)
    assert cached(engine, ask(tail=5, mode=mode)) == (expected[0], PREFIX)
    stats = batcher_of(engine).prefix_cache.stats
    assert (stats.num_host_hit_tokens, stats.num_external_hit_tokens) == (PREFIX, 0)
    check_nothing_leaked(engine)


def test_without_host_memory_a_forgotten_page_is_computed(models: TinyModels) -> None:
    engine = make_engine(models)
    cached(engine, ask())
    crowd_out(engine)
    assert cached(engine, ask(tail=5))[1] == 0


def test_host_memory_keeps_to_its_cap_and_the_end_of_a_prefix_goes_first(
    models: TinyModels,
) -> None:
    engine = make_engine(models)
    floors = batcher_of(engine).prefix_cache.floors
    assert floors is not None
    engine = make_engine(models, host_bytes=4 * floors.page_bytes)
    cached(engine, ask())
    crowd_out(engine)
    stats = engine.metrics()
    assert (stats["num_host_pages"], stats["num_host_bytes"]) == (4, 4 * floors.page_bytes)
    assert stats["num_host_evictions"] >= 6
    # Ten pages and the answer's were forgotten from the end on, so the first four came last.
    assert cached(engine, ask(tail=5))[1] == 4 * PAGE


def test_nobody_finds_what_another_tenant_has_in_host_memory(models: TinyModels) -> None:
    engine = make_engine(models, host_bytes=MB)
    cached(engine, ask())
    crowd_out(engine)
    assert cached(engine, ask(salt="another"))[1] == 0
    assert cached(engine, ask(tail=5))[1] == PREFIX


def test_pages_come_back_as_far_as_the_device_has_room(models: TinyModels) -> None:
    engine = make_engine(models, host_bytes=MB, num_pages=20, max_model_len=80)
    cached(engine, ask())
    crowd_out(engine)
    pool = batcher_of(engine).pool
    taken = [pool.acquire() for _ in range(14)]
    pages, digests = batcher_of(engine).prefix_cache.match(ask(tail=5).prompt, "tenant")
    assert len(pages) == len(digests) == 6
    for page_id in (*reversed(pages), *taken):
        pool.release(page_id)
    check_nothing_leaked(engine)


@pytest.mark.parametrize("mode", ["ar", "deer"])
def test_a_fresh_engine_goes_on_from_what_another_has_stored(models: TinyModels, mode: str) -> None:
    store = ShelfStore()
    first, second = make_engine(models), make_engine(models)
    first.use_page_store(store)
    second.use_page_store(store)
    expected = cached(make_engine(models), ask(tail=5, mode=mode))
    assert cached(first, ask(mode=mode))[1] == expected[1] == 0
    assert cached(second, ask(tail=5, mode=mode)) == (expected[0], PREFIX)
    assert batcher_of(second).prefix_cache.stats.num_external_hit_tokens == PREFIX
    assert batcher_of(second).stats.num_prompt_tokens == 5
    check_nothing_leaked(second)


def test_a_sequence_with_prompt_logprobs_asks_no_floor(models: TinyModels) -> None:
    store = ShelfStore()
    engine = make_engine(models, host_bytes=MB)
    engine.use_page_store(store)
    params = SamplingParams(seed=1, max_tokens=2, prompt_logprobs=True, logprobs=1)
    result = run_all(engine, [Ask(ask().prompt, params, cache_salt="tenant")])[0]
    assert store.fetches == []
    assert len(result.prompt_logprobs) == len(ask().prompt)


@pytest.fixture(scope="module", params=["operators", "kernels"])
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    folder: Path = tmp_path_factory.mktemp("pages")
    paths = save_kind(folder / "verifier"), save_draft_kind(folder / "drafter")
    verifier, drafter = load_pair(*map(str, paths), torch.float32, CPU)
    runner = ModelRunner(verifier, drafter, num_pages=8, page_size=16, backend=sdpa_backend)
    if request.param == "kernels":
        runner.fuse_layers()
        assert runner.use_kernels(1)
    return runner


@pytest.mark.parametrize("kind", [CpuPages, DevicePages])
def test_a_page_that_was_copied_out_and_in_is_read_as_the_first_one(
    runner: ModelRunner, kind: type[CpuPages | DevicePages]
) -> None:
    read, written = [5, 2, 7], [1, 6, 4]
    prompt = tokens(40, 0)
    runner.verify([Span(prompt, 0, read)], [39])
    memory = kind(runner)
    pages = [HostPage.of(page.view()) for page in memory.read(read)]
    assert {page.nbytes for page in pages} == {memory.page_bytes}
    draft = [0, *[1] * (runner.block_size - 1)]
    expected = (
        runner.verify([Span([9], 40, read)], [0]),
        runner.draft([Span(draft, 40, read)], [3]),
    )
    memory.write(written, pages)
    assert torch.equal(runner.verify([Span([9], 40, written)], [0]), expected[0])
    assert torch.equal(runner.draft([Span(draft, 40, written)], [3]), expected[1])
    memory.write(written, [HostPage.of(bytes(memory.page_bytes))] * 3)
    assert not torch.equal(runner.verify([Span([9], 40, written)], [0]), expected[0])


def test_a_page_holds_the_verifiers_and_the_drafters_keys_and_values(runner: ModelRunner) -> None:
    verifier, drafter = (layers * 2 * 2 * 32 * 4 * 16 for layers in (3, 2))
    assert CpuPages(runner).page_bytes == DevicePages(runner).page_bytes == verifier + drafter


def test_pages_of_other_weights_or_numerics_have_another_tag(
    runner: ModelRunner, tmp_path: Path
) -> None:
    one, other = save_kind(tmp_path / "one"), save_kind(tmp_path / "other", seed=1)
    tag = page_tag(runner, [str(one)], ["float32"])
    assert page_tag(runner, [str(one)], ["float32"]) == tag
    assert page_tag(runner, [str(other)], ["float32"]) != tag
    assert page_tag(runner, [str(one), str(other)], ["float32"]) != tag
    assert page_tag(runner, [str(one)], ["bfloat16"]) != tag
