"""Who takes part: our own ways, and every peer that is installed and starts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.load import model_name
from benchmarks.peers import llama_cpp, python_peers
from benchmarks.peers.peer import LOADS, Peer
from benchmarks.peers.place import PeerFailedError, Place
from benchmarks.peers.running import OurMode, Running
from benchmarks.server import RunningServer, served

PEERS: tuple[Peer, ...] = (*python_peers.PEERS, *llama_cpp.PEERS)
AR, DEER = "ours, ar", "ours, deer"
EXACT = f"{AR}, float32"
"""What others' texts are compared with: most of them compute in float32, too."""
# Impossible, as some peers make the end of text where they are told to ignore it.
BANNED = -100.0


@dataclass(frozen=True)
class Contestant:
    """Something that runs, and how it may be asked."""

    running: Running
    how: str
    loads: tuple[int, ...] = LOADS
    bans_eos: bool = False


@dataclass
class LineUp:
    """Everybody who takes part, and by name why somebody does not."""

    contestants: dict[str, Contestant]
    banning: Running  # our `ar` with the end of text made impossible
    failed: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    versions: set[str] = field(default_factory=set)

    def playing(self, at_once: int) -> Iterator[tuple[str, Contestant]]:
        for name, contestant in self.contestants.items():
            if at_once in contestant.loads and name not in self.failed:
                yield name, contestant


@contextmanager
def line_up(place: Place | None, eos_ids: Iterable[int]) -> Iterator[LineUp]:
    """Start our server and one peer after the other; who has started stands still till its turn."""
    with ExitStack() as stack:
        server, exact = (
            stack.enter_context(served(PREFIX_CACHE="false", DTYPE=dtype))
            for dtype in ("auto", "float32")
        )
        found = LineUp(_ours(server, exact), _mode(exact, "ar", **_banning(eos_ids)))
        add_peers(PEERS, place, stack, found)
        yield found


def add_peers(peers: Iterable[Peer], place: Place | None, stack: ExitStack, found: LineUp) -> None:
    """Start those that are installed, to end with the stack; say of the others why they are not."""
    logs = Path(stack.enter_context(TemporaryDirectory(prefix="dflp")))
    for peer in peers:
        if place is None:
            found.missing[peer.name] = "no folder of peers was given"
        elif absent := peer.missing(place):
            found.missing[peer.name] = f"no {', '.join(absent)}"
        else:
            _start(peer, place, logs, stack, found)


def _start(peer: Peer, place: Place, logs: Path, stack: ExitStack, found: LineUp) -> None:
    log = logs / f"{peer.name.replace(' ', '-')}.log"
    sys.stderr.write(f"  starting {peer.name}\n")
    try:
        for conversion in peer.conversions:
            conversion.write(place)
        running = stack.enter_context(peer.started(place, log))
    except (PeerFailedError, OSError) as error:
        found.failed[peer.name] = str(error)
        return
    running.freeze()
    found.versions.add(peer.version(place))
    found.contestants[peer.name] = Contestant(running, peer.how, peer.loads, peer.bans_eos)


def _ours(server: RunningServer, exact: RunningServer) -> dict[str, Contestant]:
    return {
        AR: Contestant(_mode(server, "ar"), "HTTP"),
        DEER: Contestant(_mode(server, "deer"), "HTTP"),
        EXACT: Contestant(_mode(exact, "ar"), "HTTP"),
        f"{DEER}, float32": Contestant(_mode(exact, "deer"), "HTTP"),
        f"{AR}, T = 1": Contestant(_mode(server, "ar", temperature=1.0), "HTTP", (1,)),
        f"{DEER}, T = 1": Contestant(_mode(server, "deer", temperature=1.0), "HTTP", (1,)),
    }


def _mode(server: RunningServer, mode: str, **fields: object) -> Running:
    usual = {"model": model_name(server.port), "mode": mode, "ignore_eos": True, "seed": 0}
    return OurMode(server.pid, server.port, {**usual, "temperature": 0.0, **fields})


def _banning(eos_ids: Iterable[int]) -> dict[str, object]:
    return {"ignore_eos": False, "logit_bias": {str(token_id): BANNED for token_id in eos_ids}}
