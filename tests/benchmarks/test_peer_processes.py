"""Processes of peers: they stand still out of turn, answer lines, and end whatever they do."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.frozen_process import cpu_seconds, frozen_process, machine_cpu_seconds
from benchmarks.peers.peer import LibraryPeer
from benchmarks.peers.place import ROOT, WEIGHTS, PeerFailedError, Place, peer_environ
from benchmarks.peers.running import PeerPrompt
from benchmarks.peers.workers.plain_loop import write_canvas
from engine.request.tokenizer import Tokenizer
from engine.training.denoise import canvas

PROMPT = [1, 300, 301, 302, 2, 1]
DIFFUSION = WEIGHTS / "diffusion"


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _wait_for_state(pid: int, wanted: str) -> None:
    deadline = time.monotonic() + 20
    while _state(pid) not in wanted:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_a_process_stands_still_when_told_to_and_ends_with_the_block_all_the_same(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", "while True: pass"]
    with frozen_process(command, tmp_path / "log", os.environ, ROOT, is_asked=False) as process:
        pid = process.process.pid
        process.freeze()
        _wait_for_state(pid, "T")
        spent = cpu_seconds(pid)
        process.thaw()
        _wait_for_state(pid, "R")
        process.freeze()
        assert cpu_seconds(pid) >= spent
    assert process.process.returncode == -signal.SIGTERM


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_the_machines_time_holds_what_this_process_has_used() -> None:
    before, own = machine_cpu_seconds(), time.process_time()
    while time.process_time() - own < 0.3:
        pass
    assert machine_cpu_seconds() - before >= 0.2  # counted in ticks of a hundredth


def test_cpu_time_of_who_is_gone_is_no_figure() -> None:
    spent = cpu_seconds(2**30)
    assert spent != spent


def test_a_peer_inherits_threads_but_none_of_our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("OMP_WAIT_POLICY", "passive"), ("VDIFF_API_KEY", "secret")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environ = peer_environ(Place(Path("nowhere")))
    assert environ["OMP_NUM_THREADS"] == "3"
    assert not {"OMP_WAIT_POLICY", "VDIFF_API_KEY"} & set(environ)


def test_the_plain_loop_writes_what_the_reference_writes_at_a_token_a_pass() -> None:
    model = AutoModelForCausalLM.from_pretrained(DIFFUSION, dtype=torch.float32)
    # A question on which a wrong mask, of the canvas or of the prompt, writes something else.
    prompt = Tokenizer(DIFFUSION).apply_chat_template(
        [{"role": "user", "content": "I want to book a hotel in San Jose."}]
    )
    written = canvas(model, prompt, 16, threshold=1.0)
    assert written.num_forwards == 16
    assert write_canvas(model, prompt, 16) == written.token_ids


def test_a_library_is_asked_in_its_own_process_and_its_failure_is_told(tmp_path: Path) -> None:
    peer = LibraryPeer(
        name="loop",
        home=Path(sys.prefix).name,
        needs=("bin/python",),
        worker="plain_loop",
        arguments=lambda place: [str(DIFFUSION)],
    )
    place = Place(Path(sys.prefix).parent)
    assert peer.missing(place) == []
    with peer.started(place, tmp_path / "log") as library:
        prompts = [PeerPrompt("", PROMPT), PeerPrompt("", PROMPT[1:])]
        answers = library.generate(prompts, 2, at_once=1)
        assert list(answers.num_tokens) == [2, 2]
        assert answers.seconds > 0
        with pytest.raises(PeerFailedError, match=r"index|range"):
            library.generate([PeerPrompt("", [1 << 20])], 2, at_once=1)
