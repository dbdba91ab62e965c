"""Where peers, our weights and the forms of them are that peers read."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from worker.cpu_threads import available_cores

ROOT = Path(__file__).parent.parent.parent
WEIGHTS = ROOT / "engine" / "weights"
CONVERSION_TIMEOUT_S = 300.0


class PeerFailedError(RuntimeError):
    """A peer that is installed and does not do its work; the message says in a line why."""


@dataclass(frozen=True)
class Place:
    """The folder of all peers, and the weights that they are measured on."""

    peers: Path
    verifier: Path = WEIGHTS / "verifier"
    drafter: Path = WEIGHTS / "drafter"

    @cached_property
    def converted(self) -> Path:
        """A folder named after the weights, so that no peer is measured on older ones."""
        digest = hashlib.sha256()
        for folder in (self.verifier, self.drafter):
            for file in sorted(folder.glob("*.safetensors")):
                digest.update(file.read_bytes())
        return self.peers / "converted" / digest.hexdigest()[:12]

    @property
    def num_threads(self) -> int:
        """Of every peer, and of our worker."""
        return int(os.environ.get("OMP_NUM_THREADS") or available_cores())


Command = Callable[[Place, Path], list[str]]
"""Where everything is, where to write -> the command."""


@dataclass(frozen=True)
class Conversion:
    """A form of our weights, and the command that writes it."""

    name: str
    command: Command

    def path(self, place: Place) -> Path:
        return place.converted / self.name

    def write(self, place: Place) -> None:
        """Run the command, unless it has been run on these weights before."""
        target = self.path(place)
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        # Written beside it, so that a conversion that broke off is not taken for a finished one.
        unfinished = target.with_name(f"unfinished-{target.name}")
        log = target.with_name(f"{target.name}.log")
        with log.open("wb") as words:
            done = subprocess.run(
                self.command(place, unfinished),
                cwd=ROOT,
                env=peer_environ(place),
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=subprocess.STDOUT,
                timeout=CONVERSION_TIMEOUT_S,
            )
        if done.returncode or not unfinished.exists():
            raise PeerFailedError(f"converting to {self.name}: {last_line(log)}")
        unfinished.rename(target)


def peer_environ(place: Place) -> dict[str, str]:
    """What a peer inherits: as many threads as ours has, and else its own defaults."""
    ours = ("OMP_WAIT_POLICY", "PYTHONPATH", "VIRTUAL_ENV")  # ours waits passively, on purpose
    inherited = {k: v for k, v in os.environ.items() if k not in ours and k[:6] != "VDIFF_"}
    return {**inherited, "OMP_NUM_THREADS": str(place.num_threads), "HF_HUB_OFFLINE": "1"}


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")[-200:]


def _drafter(layout: str) -> Command:
    cli = [sys.executable, "-c", "from worker.cli import main; main()", "convert-drafter"]
    return lambda place, to: [*cli, str(place.drafter), str(to), "--to", layout]


def _dspark(place: Place, to: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.peers.dspark", str(place.drafter), str(to)]


DRAFTER_PUBLISHED = Conversion("drafter-published", _drafter("published"))
DRAFTER_TRANSFORMERS = Conversion("drafter-transformers", _drafter("transformers"))
DRAFTER_DSPARK = Conversion("drafter-dspark", _dspark)
