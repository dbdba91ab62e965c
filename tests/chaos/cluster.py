"""The processes of a chaos run: one Valkey with AOF, two APIs, several workers of three models."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.server import free_port
from tests.valkey import Valkey, die_with_parent

LEASE_S = 2.0
NUM_APIS = 2
# Places, seconds a step: workers are of different kinds.
FAKE_WORKERS = (("fake", 8, 0.01), ("fake", 3, 0.02), ("fake-b", 8, 0.01), ("fake-b", 5, 0.005))


@dataclass
class Slot:
    """A place for one process, which is started again whenever it has died."""

    name: str
    command: Sequence[str]
    log: Path
    env: dict[str, str]
    is_named: bool  # RQ knows each life by a name of its own
    process: subprocess.Popen[bytes] | None = None
    num_starts: int = 0
    is_frozen: bool = False
    exit_codes: list[int] = field(default_factory=list)

    @property
    def life(self) -> str:
        return f"{self.name}-{self.num_starts}"

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        self.num_starts += 1
        name = ("--name", self.life) if self.is_named else ()
        with self.log.open("ab") as words:
            self.process = subprocess.Popen(
                [*self.command, *name],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                preexec_fn=die_with_parent,
            )

    def signal(self, signum: signal.Signals) -> None:
        if self.is_running:
            assert self.process is not None
            self.process.send_signal(signum)

    def freeze(self) -> None:
        self.is_frozen = True
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.is_frozen = False
        self.signal(signal.SIGCONT)

    def revive(self) -> None:
        """Start it again if it has died."""
        if not self.is_running:
            if self.process is not None:
                self.exit_codes.append(self.process.returncode)
            self.is_frozen = False
            self.start()


class Cluster:
    """All of them; `tick` brings back what has died."""

    def __init__(self, folder: Path, server: Valkey, *, with_real: bool) -> None:
        self.server = server
        self.folder = folder
        self.queue_lock = asyncio.Lock()  # one fault of the queue at a time
        self.ports = [free_port() for _ in range(NUM_APIS)]
        self.apis = [self._api(number) for number in range(NUM_APIS)]
        self.workers = [self._fake(n, *kind) for n, kind in enumerate(FAKE_WORKERS)]
        if with_real:
            self.workers.append(self._real())

    @property
    def slots(self) -> list[Slot]:
        return [*self.apis, *self.workers]

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    def tick(self) -> None:
        for slot in self.slots:
            slot.revive()

    def stop(self) -> None:
        for slot in self.slots:
            slot.signal(signal.SIGKILL)
            if slot.process is not None:
                slot.process.wait()

    def _api(self, number: int) -> Slot:
        port = str(self.ports[number])
        command = ["api", "--port", port, "--redis-url", self.server.url]
        return self._slot(f"api{number}", command, is_named=False)

    def _fake(self, number: int, model: str, num_places: int, step_s: float) -> Slot:
        command = [
            "tests.fake_worker", f"--redis-url={self.server.url}", f"--model-name={model}",
            f"--max-batch-size={num_places}", f"--step-s={step_s}", f"--lease={LEASE_S}",
            "--drain-timeout=0.5",
        ]  # fmt: skip
        return self._slot(f"w{number}", command, is_named=True)

    def _real(self) -> Slot:
        return self._slot("real", ["tests.chaos.real_worker"], is_named=True)

    def _slot(self, name: str, command: list[str], *, is_named: bool) -> Slot:
        whole = [sys.executable, "-m", "tests.shifted_clock", "0", *command]
        return Slot(name, whole, self.folder / f"{name}.log", environment(self.server), is_named)


def environment(server: Valkey) -> dict[str, str]:
    """Return our own environment without its settings, and with those of the run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VDIFF_")}
    return {
        **kept,
        "VDIFF_REDIS_URL": server.url,
        "VDIFF_LEASE": str(LEASE_S),
        "VDIFF_CPU_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
