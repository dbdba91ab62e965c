"""The bell of a job's reader: rung, or silent for too long, at the price of one timer."""

from __future__ import annotations

import asyncio

import pytest

from api.bell import Bell

pytestmark = pytest.mark.anyio


async def test_a_ring_wakes_and_is_no_silence() -> None:
    bell = Bell()
    bell.set_patience(5.0)
    asyncio.get_running_loop().call_soon(bell.ring)
    assert await bell.wait()
    bell.close()


async def test_without_a_ring_the_patience_ends() -> None:
    bell = Bell()
    bell.set_patience(0.01)
    assert not await bell.wait()
    assert not await bell.wait(), "it has ended for the waits after it as well"


async def test_a_new_patience_counts_from_its_own_beginning() -> None:
    bell = Bell()
    loop = asyncio.get_running_loop()
    began = loop.time()
    bell.set_patience(0.02)
    await asyncio.sleep(0.01)
    bell.set_patience(0.05)
    assert not await bell.wait()
    assert loop.time() >= began + 0.05


async def test_a_shorter_patience_ends_sooner_than_the_timer_that_runs() -> None:
    bell = Bell()
    bell.set_patience(3600.0)
    bell.set_patience(0.01)
    async with asyncio.timeout(5.0):
        assert not await bell.wait()


async def test_patience_without_end_outlives_a_timer_that_was_set_before() -> None:
    bell = Bell()
    bell.set_patience(0.01)
    bell.set_patience(None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await bell.wait()


async def test_a_thousand_rings_set_one_timer_and_closing_leaves_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bell = Bell()
    loop = asyncio.get_running_loop()
    timers = []
    call_at = loop.call_at

    def counting(*args: object) -> asyncio.TimerHandle:
        timers.append(call_at(*args))  # type: ignore[arg-type]
        return timers[-1]

    monkeypatch.setattr(loop, "call_at", counting)
    for _ in range(1000):
        bell.set_patience(15.0)
        loop.call_soon(bell.ring)
        assert await bell.wait()
    assert len(timers) == 1
    bell.close()
    assert timers[0].cancelled()
