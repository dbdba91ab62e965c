"""The engine thread: what is posted runs, what fails is told, and nobody waits for anybody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from engine.request.outputs import StepOutput
from engine.request.sampling_params import SamplingParams
from tests.fakes import POISON, FakeEngine, FakeSequence
from worker.engine_thread import MAX_FAULTS_IN_A_ROW, Abort, EngineFault, EngineThread

WAIT_S = 10.0


class Bench:
    """An engine thread, and all that it has said."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.heard: list[StepOutput | EngineFault] = []
        self._rung = threading.Event()
        self.urgent: list[bool] = []
        self.thread = EngineThread(engine, self._note)
        self.thread.start()

    def _note(self, is_urgent: bool) -> None:
        self.urgent.append(is_urgent)
        self._rung.set()

    def sequence(self, name: str, prompt: str = "prompt", num_tokens: int = 5) -> FakeSequence:
        params = SamplingParams(max_tokens=num_tokens)
        return self.engine.make_sequence(name, self.engine.tokenizer.encode(prompt), params)

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not is_so():
            assert time.monotonic() < deadline, self.heard
            self._rung.wait(0.05)
            self._rung.clear()
            self.heard += self.thread.take()

    def outputs(self, name: str) -> list[StepOutput]:
        outputs = [one for one in self.heard if isinstance(one, StepOutput)]
        return [one for one in outputs if one.sequence_id == name]

    def faults(self) -> list[EngineFault]:
        return [one for one in self.heard if isinstance(one, EngineFault)]

    def has_ended(self, name: str) -> bool:
        return any(output.finish_reason is not None for output in self.outputs(name))


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(FakeEngine(step_s=0.001))
    yield bench
    bench.thread.stop()
    bench.thread.join(WAIT_S)
    assert not bench.thread.is_alive()


def test_what_is_posted_while_others_run_joins_them(bench: Bench) -> None:
    bench.thread.post([bench.sequence("long", num_tokens=200)])
    bench.wait_until(lambda: len(bench.outputs("long")) > 3)
    bench.thread.post([bench.sequence("short")])
    bench.wait_until(lambda: bench.has_ended("short"))
    assert not bench.has_ended("long")
    bench.wait_until(lambda: bench.has_ended("long"))


def test_an_aborted_sequence_says_nothing_more(bench: Bench) -> None:
    bench.thread.post([bench.sequence("gone", num_tokens=4000), bench.sequence("stays")])
    bench.wait_until(lambda: bench.has_ended("stays"))
    bench.thread.post([Abort("gone"), bench.sequence("after")])
    bench.wait_until(lambda: bool(bench.outputs("after")))
    num_outputs = len(bench.outputs("gone"))
    bench.wait_until(lambda: bench.has_ended("after"))
    assert len(bench.outputs("gone")) == num_outputs
    assert not bench.engine.has_work


def test_a_sequences_first_word_and_its_last_are_urgent(bench: Bench) -> None:
    bench.thread.post([bench.sequence("job", num_tokens=6)])
    bench.wait_until(lambda: bench.has_ended("job"))
    assert bench.urgent == [True, False, False, False, False, True]


def test_what_has_no_text_is_not_yet_a_first_word(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = bench.engine.step

    def without_text_twice() -> list[StepOutput]:
        return [one._replace(text="" if bench.engine.num_steps < 3 else "t") for one in step()]

    monkeypatch.setattr(bench.engine, "step", without_text_twice)
    bench.thread.post([bench.sequence("job", num_tokens=5)])
    bench.wait_until(lambda: bench.has_ended("job"))
    assert bench.urgent == [True, True, True, False, True]


def test_a_fault_names_its_batch_and_the_next_one_runs(bench: Bench) -> None:
    bench.thread.post([bench.sequence("neighbour", num_tokens=4000)])
    bench.wait_until(lambda: bool(bench.outputs("neighbour")))
    bench.thread.post([bench.sequence("poison", POISON)])
    bench.wait_until(lambda: bool(bench.faults()))
    assert bench.faults() == [
        EngineFault("RuntimeError", frozenset({"neighbour", "poison"}), False)
    ]
    bench.thread.post([bench.sequence("after")])
    bench.wait_until(lambda: bench.has_ended("after"))


def test_an_engine_that_always_fails_is_given_up(bench: Bench) -> None:
    for number in range(MAX_FAULTS_IN_A_ROW):
        assert bench.thread.is_alive()
        bench.thread.post([bench.sequence("poison", POISON)])
        bench.wait_until(lambda wanted=number + 1: len(bench.faults()) == wanted)  # type: ignore[misc]
    bench.thread.join(WAIT_S)
    assert [fault.is_fatal for fault in bench.faults()] == [False] * 5 + [True]


def test_an_engine_that_cannot_let_go_is_given_up_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(sequence_id: str) -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(bench.engine, "abort", fail)
    bench.thread.post([bench.sequence("poison", POISON)])
    bench.wait_until(lambda: bool(bench.faults()))
    assert bench.faults()[0].is_fatal


def test_a_paused_engine_makes_no_step_until_it_may_go_on(bench: Bench) -> None:
    bench.thread.post([bench.sequence("job", num_tokens=2000)])
    bench.wait_until(lambda: bool(bench.outputs("job")))
    bench.thread.pause(True)
    bench.wait_until(lambda: bench.thread.step_age_s == 0.0)
    steps = bench.engine.num_steps
    time.sleep(0.05)
    assert bench.engine.num_steps == steps
    bench.thread.pause(False)
    bench.wait_until(lambda: bench.has_ended("job"))


def test_a_step_that_hangs_can_be_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang() -> list[StepOutput]:
        release.wait(WAIT_S)
        return []

    monkeypatch.setattr(bench.engine, "step", hang)
    bench.thread.post([bench.sequence("job")])
    bench.wait_until(lambda: bench.thread.step_age_s > 0.05)
    bench.thread.post([Abort("job")])
    release.set()
    bench.wait_until(lambda: not bench.engine.has_work)
