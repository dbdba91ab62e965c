"""A real worker process around an engine without a model, which serves when it is told to go."""

from __future__ import annotations

import argparse
import logging
import sys

from redis import Redis

from benchmarks.paced_worker import PacedEngine
from tests.fakes import FakeEngine
from worker.batch_worker import unique_name
from worker.service import serve
from worker.settings import WorkerSettings

READY = "bench:ready"
GO = "bench:go"


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.held_worker", description=__doc__)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--step-s", type=float, required=True, help="0: an engine without a pace")
    parser.add_argument("--max-batch-size", type=int, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    engine = FakeEngine(max_batch_size=args.max_batch_size)
    if args.step_s:
        engine = PacedEngine(step_s=args.step_s, max_batch_size=args.max_batch_size)
    with Redis.from_url(args.redis_url) as client:
        client.rpush(READY, "")
        client.blpop([GO])
    return serve(engine, WorkerSettings(redis_url=args.redis_url), unique_name())


if __name__ == "__main__":
    sys.exit(main())
