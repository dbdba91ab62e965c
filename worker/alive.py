"""`python -m worker.alive [api|worker]`: a health check of the part that runs on this host.

A worker serves no HTTP, so its heartbeat in Redis is looked for, by its host's name.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
import urllib.request
from collections.abc import Mapping

from redis.exceptions import RedisError

from worker.redis_connection import connect
from worker.settings import read_settings
from worker.wire import codec, lua
from worker.wire.known_settings import API, WORKER

HTTP_TIMEOUT_S = 3.0


def main(argv: list[str]) -> int:
    """Return 0 where the part works, 1 where it does not; without a part, where either works."""
    parser = argparse.ArgumentParser("python -m worker.alive", description=__doc__)
    parser.add_argument("part", choices=(API, WORKER), nargs="?")
    part = parser.parse_args(argv).part
    checks = {API: _trouble_of_api, WORKER: _trouble_of_worker}
    troubles = [check(os.environ) for name, check in checks.items() if part in (name, None)]
    if not all(troubles):
        return 0
    sys.stderr.write("\n".join(troubles) + "\n")
    return 1


def _trouble_of_api(environ: Mapping[str, str]) -> str:
    port = environ.get("VDIFF_PORT", "").strip() or "8080"
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=HTTP_TIMEOUT_S):
            return ""
    except OSError as error:
        return f"the API does not answer: {error}"


def _trouble_of_worker(environ: Mapping[str, str]) -> str:
    own_name = re.compile(re.escape(socket.gethostname()) + "-[0-9a-f]{8}")
    try:
        with connect(read_settings(environ).redis_url) as client:
            words = lua.call(client, "listed", {"index": "workers", "kind": "worker"})
    except RedisError as error:
        # The worker keeps its output until Redis is back; whoever stopped it now would lose that.
        sys.stderr.write(f"Redis does not answer, so nothing is known: {error}\n")
        return ""
    if any(own_name.fullmatch(codec.decode_worker_info(word).name) for word in words):
        return ""
    return f"no worker of {socket.gethostname()} has a heartbeat"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
