"""After a pause output is sent at once; after a sending it gathers, but for what is urgent."""

from __future__ import annotations

from worker.rhythm import Rhythm


class Bench:
    """A rhythm of 10 ms, and how often it has rung."""

    def __init__(self, interval_s: float = 0.010) -> None:
        self.num_rings = 0
        self.rhythm = Rhythm(interval_s, self._ring)

    def _ring(self) -> None:
        self.num_rings += 1

    def turn(self, now: float, *, sends: bool) -> bool:
        self.rhythm.hold()
        if sends:
            self.rhythm.rest(now)
        return self.rhythm.listen(now)


def test_output_after_a_pause_rings_at_once() -> None:
    bench = Bench()
    bench.rhythm.heard(is_urgent=False)
    assert bench.num_rings == 1


def test_output_after_a_sending_does_not_ring_until_the_rest_is_over() -> None:
    bench = Bench()
    assert not bench.turn(1.0, sends=True)
    bench.rhythm.heard(is_urgent=False)
    assert bench.num_rings == 0
    assert bench.rhythm.next_look == 1.010
    assert bench.turn(1.011, sends=False)
    bench.rhythm.heard(is_urgent=False)
    assert bench.num_rings == 1
    assert bench.rhythm.next_look == float("inf")


def test_a_turn_for_another_reason_does_not_end_a_rest() -> None:
    bench = Bench()
    bench.turn(1.0, sends=True)
    assert not bench.turn(1.005, sends=False)
    bench.rhythm.heard(is_urgent=False)
    assert bench.num_rings == 0


def test_what_is_urgent_rings_within_a_rest() -> None:
    bench = Bench()
    bench.turn(1.0, sends=True)
    bench.rhythm.heard(is_urgent=True)
    assert bench.num_rings == 1


def test_a_loop_that_is_awake_is_not_rung_for_but_told_to_look() -> None:
    bench = Bench()
    bench.rhythm.hold()
    bench.rhythm.heard(is_urgent=False)
    assert bench.num_rings == 0
    assert bench.rhythm.listen(1.0)


def test_without_an_interval_there_is_no_rest() -> None:
    bench = Bench(interval_s=0.0)
    assert bench.turn(1.0, sends=True)
    bench.rhythm.heard(is_urgent=False)
    assert bench.num_rings == 1
