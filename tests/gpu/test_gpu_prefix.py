"""The lower floors of the prefix cache on a CUDA device: pinned memory, copies without a wait."""

from __future__ import annotations

import pytest
import torch

from engine.build import EngineConfig, build_engine
from engine.cache.host_page import HostPage
from engine.dfastllm_engine import DFastLLMEngine
from engine.models.device_pages import DevicePages
from engine.request.sampling_params import SamplingParams
from tests.engine.engines import Ask, batcher_of, check_nothing_leaked, tokens
from tests.engine.shelf_store import ShelfStore
from tests.engine.test_lower_floors import cached, crowd_out

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

PREFIX = 1024


def engine(**settings: int) -> DFastLLMEngine:
    return build_engine(EngineConfig(device="cuda", dtype="float32", **settings))


def ask(tail: int) -> Ask:
    params = SamplingParams(seed=3, max_tokens=16, temperature=1.0, ignore_eos=True)
    return Ask(tokens(PREFIX, 0) + tokens(tail, tail), params, mode="deer", cache_salt="tenant")


def test_what_the_device_forgets_comes_back_from_pinned_memory() -> None:
    made = engine(host_cache_bytes=256 << 20)
    first = cached(made, ask(9))
    crowd_out(made)
    assert cached(made, ask(9)) == (first[0], PREFIX)
    check_nothing_leaked(made)


def test_a_fresh_engine_goes_on_from_what_another_has_stored() -> None:
    store = ShelfStore()
    one, two = engine(), engine()
    one.use_page_store(store)
    two.use_page_store(store)
    assert one.page_tag == two.page_tag
    first = cached(one, ask(9))
    assert cached(two, ask(9)) == (first[0], PREFIX)
    check_nothing_leaked(two)


def test_pages_are_pinned_and_come_back_as_they_were() -> None:
    made = engine()
    cached(made, ask(9))
    memory = DevicePages(made._runner)
    held = list(batcher_of(made).prefix_cache._page_of.values())[:5]
    pages = memory.read(held)
    assert all(page.data.is_pinned() for page in pages)
    copies = [HostPage.of(page.view()) for page in pages]
    memory.write(held, [HostPage.of(bytes(memory.page_bytes))] * len(held))
    memory.write(held, copies)
    again = memory.read(held)
    assert [bytes(page.view()) for page in again] == [bytes(page.view()) for page in copies]
