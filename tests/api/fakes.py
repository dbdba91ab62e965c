"""A gateway that answers by script, and a real HTTP server around it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from litestar import Litestar

from api.app import create_app
from api.generation import Generation
from api.http_protocol import PatientProtocol
from api.settings import ApiSettings
from worker.wire.messages import (
    Accepted,
    Answered,
    Chat,
    Delta,
    DraftStats,
    Event,
    Finished,
    GenerateJob,
    ModelInfo,
    Timing,
    TokenLogprob,
    Usage,
    WorkerInfo,
)
from worker.wire.questions import Topic
from worker.wire.queue_state import QueueState, StoreMemory
from worker.wire.queueing import NO_TERMS, Terms

MODEL = ModelInfo("tiny", 128, ["ar", "deer"], 1_700_000_000, "fp-1")
START_TIMEOUT_S = 10.0

Script = Callable[[GenerateJob], AsyncIterator[Event]]


def words_of(job: GenerateJob) -> list[str]:
    """Return what the fake model says to everything."""
    return ["Hello", ", ", "wörld"]


async def polite(job: GenerateJob) -> AsyncIterator[Event]:
    """Answer every choice with the same three tokens, as a worker would."""
    num_prompts = 1 if isinstance(job.input, Chat) else len(job.input.prompts)
    num_choices = num_prompts * job.n
    yield Accepted(job.job_id, 5 * num_prompts)
    index = 0
    for position, word in enumerate(words_of(job)):
        for choice in range(num_choices):
            reason = "stop" if position == 2 else None
            logprobs = _logprobs(word) if job.sampling.logprobs is not None else None
            yield Delta(job.job_id, index, choice, [position], word, reason, logprobs)
            index += 1
    usage = Usage(5 * num_prompts, 3 * num_choices, 4)
    timing = Timing(0.5, 0.25, 1.0)
    yield Finished(job.job_id, index, usage, DraftStats(4, [1, 0, 1]), timing=timing)


def _logprobs(word: str) -> list[TokenLogprob]:
    return [TokenLogprob(7, word.encode(), -0.5, [(7, word.encode(), -0.5), (8, b"x", -1.5)])]


@dataclass
class FakeGateway:
    """`api.gateway.GenerationGateway` without Redis: `script` says what comes back."""

    script: Script = polite
    known: list[ModelInfo] = field(default_factory=lambda: [MODEL])
    live: list[WorkerInfo] = field(
        default_factory=lambda: [WorkerInfo("w1", MODEL, 8, metrics={"steps_total": 3})]
    )
    jobs: list[GenerateJob] = field(default_factory=list)
    asked: list[tuple[str, Topic]] = field(default_factory=list)
    priorities: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    refusal: Exception | None = None
    served: bool = True
    closed: threading.Event = field(default_factory=threading.Event)
    api_id: str = "api0"

    async def submit(self, job: GenerateJob, priority: str, terms: Terms = NO_TERMS) -> Generation:
        if self.refusal is not None:
            raise self.refusal
        self.jobs.append(job)
        self.priorities.append(priority)
        generation = Generation(job, self._on_close, terms.record)
        generation.position = 12
        self._player = asyncio.ensure_future(self._play(job, generation))
        return generation

    def hand_over(self) -> None:
        raise NotImplementedError("nobody reads on elsewhere here")

    async def models(self, *, is_fresh: bool = False) -> list[ModelInfo]:
        return self.known

    async def is_served(self, model: str, *, is_fresh: bool = False) -> bool:
        return self.served

    async def ask(self, model: str, about: Topic) -> Answered:
        self.asked.append((model, about))
        return Answered("q1", [7, 8], ["a", "b"], "ab", {"eos_token": "</s>"})

    async def workers(self) -> list[WorkerInfo]:
        return self.live

    async def queues(self) -> dict[str, QueueState]:
        return {"tiny.default": QueueState(3, 1.5, 2, 4)}

    async def store_memory(self) -> StoreMemory | None:
        return StoreMemory(1000, 4000)

    def _on_close(self, generation: Generation) -> None:
        if generation.may_still_run:
            self.cancelled.append(generation.job_id)
        self.closed.set()

    async def _play(self, job: GenerateJob, generation: Generation) -> None:
        async for event in self.script(job):
            generation.put(event)


@contextmanager
def serving(app: Litestar) -> Iterator[str]:
    """Serve an application on a free port, in a thread; yield its address."""
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    # asyncio spares us Nagle's 40 ms only where the socket says that it is TCP.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        _wait_until(lambda: server.started or not thread.is_alive())
        assert server.started, "the server did not start"
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(START_TIMEOUT_S)
            assert not thread.is_alive(), "the server did not stop"


@contextmanager
def served(gateway: FakeGateway, **settings: object) -> Iterator[str]:
    with serving(create_app(ApiSettings(**settings), gateway)) as url:  # type: ignore[arg-type]
        yield url


def _wait_until(is_true: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(START_TIMEOUT_S / 0.01)):
        if is_true():
            return
        pause.wait(0.01)
