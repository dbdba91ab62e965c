"""A real worker process around the fake engine: `python -m tests.fake_worker --help`."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from tests.fakes import FakeEngine
from worker.batch_worker import unique_name
from worker.service import serve
from worker.settings import SettingsError, WorkerSettings


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis-url", default=os.environ.get("VDIFF_REDIS_URL"))
    parser.add_argument("--name", default=unique_name())
    parser.add_argument("--step-s", type=float, default=0.0)
    parser.add_argument("--tokens-per-step", type=int, default=1)
    parser.add_argument("--max-batch-size", type=int, default=8)
    parser.add_argument("--lease", type=float, default=30.0)
    parser.add_argument("--drain-timeout", type=float, default=5.0)
    parser.add_argument("--outage-buffer-mb", type=int, default=64)
    parser.add_argument("--stream-interval", type=float, default=10.0)
    parser.add_argument("--modes", default="ar,deer")
    parser.add_argument("--model-name", default="fake")
    parser.add_argument("--fingerprint", help="default: <model name>-1")
    parser.add_argument("--burst", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    engine = FakeEngine(
        step_s=args.step_s,
        tokens_per_step=args.tokens_per_step,
        max_batch_size=args.max_batch_size,
        model_name=args.model_name,
    )
    engine.modes = tuple(args.modes.split(","))
    engine.fingerprint = args.fingerprint or engine.fingerprint
    settings = WorkerSettings(
        redis_url=args.redis_url,
        lease=args.lease,
        drain_timeout=args.drain_timeout,
        outage_buffer_mb=args.outage_buffer_mb,
        stream_interval=args.stream_interval,
        burst=args.burst,
    )
    try:
        return serve(engine, settings, args.name)
    except SettingsError as error:
        sys.stderr.write(f"fake worker: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
