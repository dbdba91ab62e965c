"""A process with all its descendants that stands still whenever it is not its turn."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class FrozenProcess:
    """A process group of its own; idle peers would take the cores from the one that is measured."""

    process: subprocess.Popen[str]
    log: Path

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it and all that it started, by force where asking does not help."""
        self.thaw()
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_TIMEOUT_S)
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@contextmanager
def frozen_process(
    command: Sequence[str], log: Path, environ: Mapping[str, str], cwd: Path, is_asked: bool
) -> Iterator[FrozenProcess]:
    """Run a process for the length of a block, its words in the log.

    One that `is_asked` on its standard input answers on its standard output.
    """
    with log.open("wb") as words:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environ,
            stdin=subprocess.PIPE if is_asked else subprocess.DEVNULL,
            stdout=subprocess.PIPE if is_asked else words,
            stderr=words,
            text=True,
            # A group in our session: if we die at once, the kernel ends those that stand still.
            process_group=0,
        )
    running = FrozenProcess(process, log)
    try:
        yield running
    finally:
        running.stop()
        for pipe in filter(None, (process.stdin, process.stdout)):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def cpu_seconds(root: int) -> float:
    """CPU time so far of a process and of all its living descendants; NaN where /proc is not."""
    spent: dict[int, float] = {}
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            pid = int(path.parent.name)
            children.setdefault(int(fields[1]), []).append(pid)
            spent[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    if root not in spent:
        return float("nan")
    family, total = [root], 0.0
    while family:
        pid = family.pop()
        total += spent[pid]
        family += children.get(pid, [])
    return total


def machine_cpu_seconds() -> float:
    """CPU time that anybody has used so far, hypervisor included; NaN where /proc is not."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return float("nan")
    user, nice, system, _, _, *others = map(int, stat.read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")
