"""`python -m api`: read the settings, listen, serve."""

from __future__ import annotations

import argparse
import asyncio
import gc
import math
import os
import socket
import sys
from collections.abc import Sequence
from types import FrameType
from typing import cast

import uvicorn

from api.app import create_app
from api.http_protocol import PatientProtocol
from api.redis_connection import check_redis
from api.sending import ServerApp
from api.settings import ApiSettings, SettingsError, load_settings
from api.tracing import RequestSpans
from worker.wire.known_settings import API, settings_of
from worker.wire.logs import set_up_logs
from worker.wire.tracing import open_tracing

GC_THRESHOLD = 50_000  # new objects; what a frame brings is gone again before there are so many


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 2 for settings that make no sense, or a Redis that will not do."""
    try:
        settings = load_settings({**os.environ, **_flags(argv)})
        set_up_logs(settings.log_level, settings.log_format)
        asyncio.run(check_redis(settings.redis_url))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    app = create_app(settings)
    tracing = open_tracing("api", f"{socket.gethostname()}-{os.getpid()}")
    if tracing is not None:
        app.spans = RequestSpans(tracing)
    server = _Server(_config(app, settings))
    _spare_the_collector()
    server.run()
    if tracing is not None:
        tracing.close()
    return 0 if server.started else 1


def _flags(argv: Sequence[str] | None) -> dict[str, str]:
    """Return the flags given, under the names of the environment variables they stand for."""
    parser = argparse.ArgumentParser(prog="python -m api", description=__doc__)
    for setting in settings_of(API):
        text = f"{setting.help} (default: {setting.default}; {setting.name})"
        parser.add_argument(setting.flag, dest=setting.name, metavar="VALUE", help=text)
    given = vars(parser.parse_args(argv))
    return {name: value for name, value in given.items() if value is not None}


def _spare_the_collector() -> None:
    """Let the cyclic collector look at less, and seldom: its pauses are tokens that come late.

    Measured with 512 streams: a quarter of this process's time, and pauses of 40 to 200 ms.
    """
    gc.collect()
    gc.freeze()  # what is loaded now stays until the end
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])


def _config(app: ServerApp, settings: ApiSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=PatientProtocol,
        loop="uvloop",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        # Without it one open stream would keep a stopping server alive for ever.
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace),
    )


class _Server(uvicorn.Server):
    """Leaves streams that it must cut to run on, for their clients to read elsewhere."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        services = getattr(cast("ServerApp", self.config.app).state, "services", None)
        if services is not None:
            services.gateway.hand_over()


if __name__ == "__main__":
    sys.exit(main())
