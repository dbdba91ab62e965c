"""`dfastllm serve` with the fake engine in its workers: `python -m tests.fake_serve`."""

from __future__ import annotations

import dataclasses
import os
import sys

from worker.front_door import FrontDoor
from worker.serve_plan import ServePlan
from worker.supervisor import Supervisor


def main() -> int:
    plan = ServePlan.read(os.environ)
    worker = (sys.executable, "-m", "tests.fake_worker", "--step-s=0.02", "--drain-timeout=1")
    plan = dataclasses.replace(plan, worker_command=worker)
    return Supervisor(plan, FrontDoor(plan)).run()


if __name__ == "__main__":
    sys.exit(main())
