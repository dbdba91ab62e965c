"""A peer that runs: asked over HTTP, or a library in a process that does nothing else."""

from __future__ import annotations

import json
import selectors
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

from benchmarks.load import run_streams
from benchmarks.peers.frozen_process import FrozenProcess, cpu_seconds, machine_cpu_seconds
from benchmarks.peers.place import PeerFailedError, last_line

ANSWER_TIMEOUT_S = 150.0


@dataclass(frozen=True)
class PeerPrompt:
    """The same prompt in both forms: a server reads the text, a library the tokens."""

    text: str
    token_ids: Sequence[int]


@dataclass(frozen=True)
class Answers:
    """What came of some prompts, in their order; a library answers in tokens, not in texts."""

    seconds: float
    num_tokens: Sequence[int]
    texts: Sequence[str] = ()
    token_ids: Sequence[Sequence[int]] = ()
    times: Mapping[str, float] = field(default_factory=dict)


class Running(Protocol):
    """What can be measured."""

    @property
    def pid(self) -> int: ...

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...

    def generate(self, prompts: Sequence[PeerPrompt], num_tokens: int, at_once: int) -> Answers: ...


@dataclass(frozen=True)
class OurMode:
    """One of our ways of generating, over HTTP; our server is never frozen, it has leases to keep.

    `fields` go into every request.
    """

    pid: int
    port: int
    fields: Mapping[str, object]

    def freeze(self) -> None:
        pass

    def thaw(self) -> None:
        pass

    def generate(self, prompts: Sequence[PeerPrompt], num_tokens: int, at_once: int) -> Answers:
        return ask_server(self.port, self.fields, prompts, num_tokens, at_once)


@dataclass(frozen=True)
class OwnProcess:
    """A peer that stands still while it is not its turn."""

    process: FrozenProcess

    @property
    def pid(self) -> int:
        return self.process.process.pid

    def freeze(self) -> None:
        self.process.freeze()

    def thaw(self) -> None:
        self.process.thaw()


@dataclass(frozen=True)
class Server(OwnProcess):
    """A peer's own server."""

    port: int
    fields: Mapping[str, object]

    def generate(self, prompts: Sequence[PeerPrompt], num_tokens: int, at_once: int) -> Answers:
        return ask_server(self.port, self.fields, prompts, num_tokens, at_once)


@dataclass(frozen=True)
class Library(OwnProcess):
    """A peer inside a worker of `benchmarks.peers.workers`: a line of JSON in, a line out."""

    def wait_until_ready(self, timeout_s: float) -> None:
        self._answer(timeout_s)

    def generate(self, prompts: Sequence[PeerPrompt], num_tokens: int, at_once: int) -> Answers:
        asked = [list(prompt.token_ids) for prompt in prompts]
        request = {"prompts": asked, "num_tokens": num_tokens, "at_once": at_once}
        to_worker = self.process.process.stdin
        assert to_worker is not None
        to_worker.write(json.dumps(request) + "\n")
        to_worker.flush()
        found = self._answer(ANSWER_TIMEOUT_S)
        token_ids = found["token_ids"]
        return Answers(found["seconds"], [len(ids) for ids in token_ids], token_ids=token_ids)

    def _answer(self, timeout_s: float) -> Any:
        from_worker = self.process.process.stdout
        assert from_worker is not None
        if not _has_words(from_worker, timeout_s):
            raise PeerFailedError(f"no answer in {timeout_s:.0f} s")
        if not (line := from_worker.readline()):
            raise PeerFailedError(last_line(self.process.log))
        return json.loads(line)


def ask_server(
    port: int,
    fields: Mapping[str, object],
    prompts: Sequence[PeerPrompt],
    num_tokens: int,
    at_once: int,
) -> Answers:
    """Stream completions, `at_once` at a time, and keep their texts."""
    requests = [
        ("/v1/completions", {"prompt": prompt.text, "max_tokens": num_tokens, **fields})
        for prompt in prompts
    ]
    result = run_streams(port, requests, at_once)
    return Answers(
        result.seconds,
        [stream.num_tokens for stream in result.streams],
        texts=[stream.text for stream in result.streams],
        times={key: result.figures()[key] for key in ("first_ms_p50", "pace_ms_p50")},
    )


def figures(
    running: Running, prompts: Sequence[PeerPrompt], num_tokens: int, at_once: int
) -> tuple[Answers, dict[str, float]]:
    """Let it go, measure, and let it stand still again."""
    running.thaw()
    time.sleep(0.05)  # what it has to catch up with is not part of the measurement
    started = _cpu(running)
    try:
        answers = running.generate(prompts, num_tokens, at_once)
        everybody, cpu, client = (b - a for a, b in zip(started, _cpu(running), strict=True))
    finally:
        running.freeze()
    total = sum(answers.num_tokens)
    return answers, {
        "tokens_s": total / answers.seconds,
        "tokens_cpu_s": total / cpu if cpu > 0 else float("nan"),
        "other_cores": (everybody - cpu - client) / answers.seconds,
        "num_complete": sum(number == num_tokens for number in answers.num_tokens),
        "num_answers": len(answers.num_tokens),
        "first_ms_p50": float("nan"),
        "pace_ms_p50": float("nan"),
        **answers.times,
    }


def _cpu(running: Running) -> tuple[float, float, float]:
    """CPU seconds so far: the machine's, the engine's, the client's."""
    return machine_cpu_seconds(), cpu_seconds(running.pid), time.process_time()


def _has_words(pipe: IO[str], timeout_s: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        return bool(selector.select(timeout_s))
