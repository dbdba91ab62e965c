"""What a peer is: where it must be installed, what it reads, how it is started."""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

from benchmarks.peers.frozen_process import FrozenProcess, frozen_process
from benchmarks.peers.place import (
    ROOT,
    Conversion,
    PeerFailedError,
    Place,
    last_line,
    peer_environ,
)
from benchmarks.peers.running import Library, Running, Server
from benchmarks.server import free_port

START_TIMEOUT_S = 150.0
LOADS = (1, 16)


@dataclass(frozen=True, kw_only=True)
class Peer(ABC):
    """An engine that generates with our weights; `needs` are files that show it is installed."""

    name: str
    home: str  # its sub-folder of the peers' folder
    needs: tuple[str, ...]
    package: str = ""  # whose version is its own; without one, its program says it
    conversions: tuple[Conversion, ...] = ()
    loads: tuple[int, ...] = LOADS
    bans_eos: bool = False
    """Told to ignore the end of text, it makes that token impossible instead of going on."""
    environ: Mapping[str, str] = field(default_factory=dict)
    preloads: tuple[str, ...] = ()  # libraries that it asks to be loaded before all others

    @property
    @abstractmethod
    def how(self) -> str:
        """Through what it is asked."""

    @abstractmethod
    def started(self, place: Place, log: Path) -> AbstractContextManager[Running]:
        """Run it for the length of a block; raises PeerFailedError where it does not start."""

    def missing(self, place: Place) -> list[str]:
        """Files that would be there if it were installed."""
        wanted = (*self.needs, *self.preloads)
        return [f"{self.home}/{name}" for name in wanted if not self.file(place, name).exists()]

    def version(self, place: Place) -> str:
        """What is installed, as it calls itself."""
        if self.package:
            pattern = f"lib/python*/site-packages/{self.package.replace('-', '_')}-*.dist-info"
            found = [path.stem for path in (place.peers / self.home).glob(pattern)]
            return ", ".join(found) or f"{self.package} of an unknown version"
        command = [str(self.file(place, self.needs[0])), "--version"]
        said = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30
        )
        return f"{self.home} {said.stdout.splitlines()[0]}"

    def file(self, place: Place, name: str) -> Path:
        return (place.peers / self.home / name).absolute()

    def _process(
        self, command: list[str], place: Place, log: Path, is_asked: bool
    ) -> AbstractContextManager[FrozenProcess]:
        environ = {**peer_environ(place), **self.environ}
        if self.preloads:
            environ["LD_PRELOAD"] = ":".join(str(self.file(place, name)) for name in self.preloads)
        return frozen_process(command, log, environ, ROOT, is_asked)


@dataclass(frozen=True, kw_only=True)
class ServerPeer(Peer):
    """A peer with a server of its own; `arguments` are for the first of its `needs`."""

    arguments: Callable[[Place, int], list[str]]
    fields: Callable[[Place], Mapping[str, object]]

    @property
    def how(self) -> str:
        return "HTTP"

    @contextmanager
    def started(self, place: Place, log: Path) -> Iterator[Running]:
        port = free_port()
        command = [str(self.file(place, self.needs[0])), *self.arguments(place, port)]
        with self._process(command, place, log, is_asked=False) as process:
            _wait_until_healthy(port, process)
            yield Server(process, port, self.fields(place))


@dataclass(frozen=True, kw_only=True)
class LibraryPeer(Peer):
    """A peer without a server, driven by a module of `workers` in its own interpreter."""

    worker: str
    arguments: Callable[[Place], list[str]]

    @property
    def how(self) -> str:
        return "in process"

    @contextmanager
    def started(self, place: Place, log: Path) -> Iterator[Running]:
        module = f"benchmarks.peers.workers.{self.worker}"
        python = str(self.file(place, self.needs[0]))
        command = [python, "-m", module, *self.arguments(place)]
        with self._process(command, place, log, is_asked=True) as process:
            library = Library(process)
            library.wait_until_ready(START_TIMEOUT_S)
            yield library


def _wait_until_healthy(port: int, server: FrozenProcess) -> None:
    deadline = monotonic() + START_TIMEOUT_S
    while not _is_healthy(port):
        if server.process.poll() is not None:
            raise PeerFailedError(last_line(server.log))
        if monotonic() > deadline:
            raise PeerFailedError(f"not up in {START_TIMEOUT_S:.0f} s: {last_line(server.log)}")
        sleep(0.1)


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False
