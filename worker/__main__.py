"""`python -m worker`: settings, engine, then the queue until the process is asked to stop."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys

from worker.cpu_threads import set_cpu_policy
from worker.settings import SettingsError, WorkerSettings, changed_settings, read_settings
from worker.wire.logs import set_up_logs

EXIT_MISCONFIGURED = 2
# New objects before the cyclic collector looks: importing torch makes it look through everything
# seven times, which is half a second of the start.
GC_THRESHOLD = 10_000

log = logging.getLogger("worker")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m worker", description=__doc__)
    parser.add_argument("--name", help="the worker's name in RQ; default: <host>-<8 hex digits>")
    name = parser.parse_args(argv).name
    try:
        # Before anything imports torch: OpenMP reads its environment once.
        policy = set_cpu_policy(os.environ, int(os.environ.get("VDIFF_WORKERS") or 1))
        settings = read_settings(os.environ)
        set_up_logs(settings.log_level, settings.log_format)
        gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])
        log.info(policy)
        return _work(settings, name)
    except SettingsError as error:
        sys.stderr.write(f"dfastllm worker: {error}\n")
        return EXIT_MISCONFIGURED


def _work(settings: WorkerSettings, name: str | None) -> int:
    from engine.build import ModeNotOfferedError, build_engine
    from engine.models.causal_lm import UnsupportedModelError
    from worker.batch_worker import unique_name
    from worker.engine_config import engine_config
    from worker.service import serve
    from worker.shared_prefixes import shared_prefixes

    log.info("settings that differ from the defaults: %s", changed_settings(settings) or "none")
    try:
        engine = build_engine(engine_config(settings))
    except ModeNotOfferedError as error:
        cause = "VDIFF_HYBRID_MODE=" if settings.hybrid_enabled else "VDIFF_HYBRID_ENABLED=false: "
        raise SettingsError(f"{cause}{error}") from error
    except (OSError, UnsupportedModelError) as error:
        raise SettingsError(f"the model cannot be used: {error}") from error
    with shared_prefixes(engine, settings):
        return serve(engine, settings, name or unique_name())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
