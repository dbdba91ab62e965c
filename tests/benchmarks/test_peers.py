"""Peers: only who is there and works is in the table, and everybody else is named in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from benchmarks.options import Options
from benchmarks.peers.line_up import AR, DEER, EXACT, PEERS, Contestant, LineUp, add_peers
from benchmarks.peers.peer import ServerPeer
from benchmarks.peers.place import WEIGHTS, PeerFailedError, Place
from benchmarks.peers.running import Answers, OurMode, PeerPrompt
from benchmarks.peers.table import COLUMNS, PeersBench
from engine.request.tokenizer import Tokenizer

OURS = OurMode(pid=0, port=0, fields={})


@dataclass
class Recited:
    """Answers every prompt with its own text, or with another; breaks at a wanted call."""

    seconds: float
    text: str = ""
    breaks_at: int = -1
    is_frozen: bool = True
    num_calls: int = 0
    pid: int = 0

    def freeze(self) -> None:
        self.is_frozen = True

    def thaw(self) -> None:
        self.is_frozen = False

    def generate(self, prompts: Sequence[PeerPrompt], num_tokens: int, at_once: int) -> Answers:
        assert not self.is_frozen
        self.num_calls += 1
        if self.num_calls == self.breaks_at:
            raise PeerFailedError("out of breath")
        texts = [self.text or prompt.text for prompt in prompts]
        return Answers(self.seconds, [num_tokens] * len(texts), texts)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(WEIGHTS / "verifier")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def _bench(tokenizer: Tokenizer, **peers: Recited) -> tuple[PeersBench, LineUp]:
    running = {AR: Recited(1.0), DEER: Recited(0.5), EXACT: Recited(2.0), **peers}
    bans = {"banning"}
    contestants = {n: Contestant(r, "HTTP", bans_eos=n in bans) for n, r in running.items()}
    players = LineUp(contestants, banning=Recited(1.0, "ours without an end"))
    return PeersBench(Options(quick=True), players, tokenizer), players


def test_a_row_has_a_peers_speed_against_ours_and_how_many_answers_are_ours(
    tokenizer: Tokenizer,
) -> None:
    bench, players = _bench(tokenizer, same=Recited(0.25), other=Recited(1.0, "something else"))
    samples = bench.measure(16)
    rows = [dict(zip(COLUMNS, bench.row(n, 16, samples), strict=True)) for n in samples]
    found = {row["engine"]: row for row in rows}
    assert found["same"][f"x {AR}"] == 4.0
    assert found["same"][f"x {DEER}"] == 2.0
    assert found["same"]["complete"] == "16/16"
    assert [found[name]["same text"] for name in (AR, "same", "other")] == ["4/4", "4/4", "0/4"]
    assert all(contestant.running.is_frozen for contestant in players.contestants.values())


def test_a_peer_that_bans_the_end_of_text_is_compared_with_ours_doing_likewise(
    tokenizer: Tokenizer,
) -> None:
    bench, _ = _bench(tokenizer, banning=Recited(1.0, "ours without an end"))
    samples = bench.measure(16)
    assert bench.row("banning", 16, samples)[-1] == "4/4"


@pytest.mark.parametrize("call", [1, 2])
def test_a_peer_that_breaks_is_left_out_and_named_and_spoils_nothing(
    tokenizer: Tokenizer, call: int
) -> None:
    bench, players = _bench(tokenizer, weak=Recited(1.0, breaks_at=call), good=Recited(1.0))
    samples = bench.measure(16)
    assert list(samples) == [AR, DEER, EXACT, "good"]
    assert players.failed == {"weak": "PeerFailedError: out of breath"}
    assert "weak" not in bench.measure(1)


def test_ours_is_never_left_out(tokenizer: Tokenizer) -> None:
    bench, players = _bench(tokenizer)
    players.contestants[AR] = Contestant(OURS, "HTTP")
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        bench.measure(1)


def test_everybody_is_asked_the_same_which_fits_and_is_the_same_as_tokens(
    tokenizer: Tokenizer,
) -> None:
    bench, _ = _bench(tokenizer)
    asked = bench.prompts(16, 0)
    assert asked == bench.prompts(16, 0) != bench.prompts(16, 1)
    for prompt in asked:
        assert tokenizer.encode(prompt.text) == list(prompt.token_ids)
    assert any(prompt.text.startswith("<|im_start|>user") for prompt in asked)


def test_who_is_not_installed_is_named_with_what_is_missing(
    tmp_path: Path, stack: ExitStack
) -> None:
    found = LineUp({}, banning=OURS)
    add_peers(PEERS, Place(tmp_path), stack, found)
    assert list(found.missing) == [peer.name for peer in PEERS]
    assert "llama.cpp/bin/llama-server" in found.missing["llama.cpp, F16"]
    assert not found.contestants
    assert not found.failed


def test_without_a_folder_nobody_is_installed(stack: ExitStack) -> None:
    found = LineUp({}, banning=OURS)
    add_peers(PEERS, None, stack, found)
    assert len(found.missing) == len(PEERS)


def test_a_peer_that_does_not_start_is_named_with_its_last_words(
    tmp_path: Path, stack: ExitStack
) -> None:
    program = tmp_path / "weak" / "serve"
    program.parent.mkdir()
    words = "import sys; sys.exit('loading\\nno such model\\n')"
    program.write_text(f"#!{sys.executable}\n{words}\n")
    program.chmod(0o755)
    found = LineUp({}, banning=OURS)
    add_peers([_server("weak", "serve")], Place(tmp_path), stack, found)
    assert found.failed == {"weak": "no such model"}


def test_a_version_is_the_packages_or_what_the_program_says_of_itself(tmp_path: Path) -> None:
    (tmp_path / "weak" / "lib/python3.11/site-packages/we_ak-1.2.dist-info").mkdir(parents=True)
    program = tmp_path / "weak" / "serve"
    program.write_text("#!/bin/sh\necho build 7 >&2\n")
    program.chmod(0o755)
    peer, place = _server("weak", "serve"), Place(tmp_path)
    assert replace(peer, package="we-ak").version(place) == "we_ak-1.2"
    assert peer.version(place) == "weak build 7"


def _server(home: str, program: str) -> ServerPeer:
    return ServerPeer(
        name=home,
        home=home,
        needs=(program,),
        arguments=lambda place, port: [str(port)],
        fields=lambda place: {},
    )
