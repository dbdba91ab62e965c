"""A real worker process whose engine only keeps time: every sequence a token a step.

The token's text is the moment at which the step ended, so whoever reads it knows its way's length.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

from engine.request.outputs import FinishReason, StepOutput
from tests.fakes import FakeEngine, FakeSequence, finished_summary
from worker.batch_worker import unique_name
from worker.service import serve
from worker.settings import WorkerSettings

TOKEN_ID = 0


class PacedEngine(FakeEngine):
    """Steps at fixed moments, however long the rest takes, as a device would that is never idle."""

    def __init__(self, *, step_s: float, max_batch_size: int) -> None:
        super().__init__(max_batch_size=max_batch_size)
        self._pace_s = step_s
        self._next_step = time.monotonic()

    def step(self) -> list[StepOutput]:
        self._wait_for_turn()
        text = f"{time.monotonic_ns():d};"
        return [self._say(sequence, text) for sequence in self.running]

    def _wait_for_turn(self) -> None:
        late_s = time.monotonic() - self._next_step
        if late_s > 0:  # nobody had work, or a step was missed: the pace begins anew
            self._next_step += late_s
        time.sleep(max(0.0, -late_s))
        self._next_step += self._pace_s

    def _say(self, sequence: FakeSequence, text: str) -> StepOutput:
        sequence.output.append(TOKEN_ID)
        is_last = len(sequence.output) >= sequence.max_tokens
        if is_last:
            self.abort(sequence.sequence_id)
        return StepOutput(
            sequence.sequence_id,
            (TOKEN_ID,),
            text,
            finish_reason=FinishReason.LENGTH if is_last else None,
            summary=finished_summary(sequence) if is_last else None,
        )


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.paced_worker", description=__doc__)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--step-s", type=float, required=True)
    parser.add_argument("--max-batch-size", type=int, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    engine = PacedEngine(step_s=args.step_s, max_batch_size=args.max_batch_size)
    return serve(engine, WorkerSettings(redis_url=args.redis_url), unique_name())


if __name__ == "__main__":
    sys.exit(main())
