"""The API starts where nothing of the GPU side is installed."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = ("torch", "transformers", "engine", "rq", "numpy", "llguidance")
PROGRAM = """
import sys
for name in {blocked}:
    sys.modules[name] = None
import api.__main__
from api.app import create_app
from api.settings import ApiSettings
create_app(ApiSettings())
worker = sorted(name for name in sys.modules if name.startswith("worker."))
assert all(name.startswith("worker.wire") for name in worker), worker
"""


def test_the_api_starts_without_torch_transformers_engine_rq_or_numpy() -> None:
    program = PROGRAM.format(blocked=BLOCKED)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
