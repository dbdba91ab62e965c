"""Runs a module on a host whose clock is wrong: `python -m tests.shifted_clock 7200 MODULE ARGS`.

The shift (seconds) holds for `time.time`, `time.time_ns` and `datetime.now`, which is all that the
product and RQ ask; the monotonic clock goes on, as it does when a real clock is set. SIGUSR2 lets
the clock jump by an hour: ahead, back, ahead and so on.
"""

from __future__ import annotations

import datetime
import runpy
import signal
import sys
import time

JUMP_S = 3600.0


class Shift:
    """How far off the clock is now."""

    seconds = 0.0
    is_ahead = False


def main() -> None:
    Shift.seconds = float(sys.argv[1])
    _shift_the_clock()
    signal.signal(signal.SIGUSR2, _jump)
    module = sys.argv[2]
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _shift_the_clock() -> None:
    true_time, true_time_ns = time.time, time.time_ns

    class ShiftedDatetime(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> ShiftedDatetime:
            return cls.fromtimestamp(time.time(), tz)

    time.time = lambda: true_time() + Shift.seconds
    time.time_ns = lambda: true_time_ns() + int(Shift.seconds * 1e9)
    datetime.datetime = ShiftedDatetime  # type: ignore[misc]


def _jump(*_: object) -> None:
    Shift.is_ahead = not Shift.is_ahead
    Shift.seconds += JUMP_S if Shift.is_ahead else -JUMP_S


if __name__ == "__main__":
    main()
