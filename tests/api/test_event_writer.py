"""The short way to a chunk's bytes: the same bytes as the long way, for any text."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from api.sse import EventWriter
from api.writers import ChatWriter, TextWriter, Writer
from worker.wire.job_record import JobRecord
from worker.wire.messages import (
    Delta,
    Finished,
    GenerateJob,
    Prompts,
    Sampling,
    TokenLogprob,
    Usage,
)

TEXTS = ["plain", 'quo"te', "back\\slash\n\t", "wörld 🦊", "\x00", "data: [DONE]\n\n", "", "last"]
Maker = Callable[[GenerateJob, JobRecord], Writer]


def job(logprobs: int | None = None) -> GenerateJob:
    return GenerateJob(
        job_id="cmpl-1",
        api_id="api",
        model='a "model"',
        tenant="t",
        created=1.5,
        input=Prompts(["x"]),
        sampling=Sampling(seed=1, logprobs=logprobs),
        stream=True,
    )


class LongWay(EventWriter):
    """Every chunk is built and encoded whole."""

    def __init__(self, writer: Writer) -> None:
        super().__init__(writer)
        writer.shows_text_alone = lambda delta: False  # type: ignore[method-assign]


def both_ways(make: Maker, one: GenerateJob, wishes: JobRecord, deltas: list[Delta]) -> list[bytes]:
    written = []
    for way in (EventWriter, LongWay):
        events = way(make(one, wishes))
        written.append(b"".join(events.write([delta]) for delta in deltas))
    return written


def deltas_of(choices: int = 1) -> list[Delta]:
    return [
        Delta("cmpl-1", index, index % choices, [index], text, "stop" if text == "last" else None)
        for index, text in enumerate(text for text in TEXTS for _ in range(choices))
    ]


@pytest.mark.parametrize("make", [ChatWriter, TextWriter])
@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("with_ids", [False, True])
def test_both_ways_write_the_same(make: Maker, usage: bool, with_ids: bool) -> None:
    wishes = JobRecord("fp", include_usage=usage, return_token_ids=with_ids)
    short, long = both_ways(make, job(), wishes, deltas_of(choices=2))
    assert short == long
    assert short.count(b"data: ") >= 2 * len(TEXTS) - 2


@pytest.mark.parametrize("make", [ChatWriter, TextWriter])
def test_logprobs_are_not_lost_on_the_short_way(make: Maker) -> None:
    logprobs = [TokenLogprob(7, b"x", -0.5, [(7, b"x", -0.5)])]
    deltas = [Delta("cmpl-1", i, 0, [7], "x", None, logprobs if i % 2 else None) for i in range(4)]
    short, long = both_ways(make, job(logprobs=1), JobRecord("fp"), deltas)
    assert short == long


@pytest.mark.parametrize("make", [ChatWriter, TextWriter])
def test_most_chunks_take_the_short_way(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = make(job(), JobRecord("fp"))
    built: list[Delta] = []
    chunks = writer.chunks

    def counting(delta: Delta) -> list[msgspec.Struct]:
        built.append(delta)
        return chunks(delta)

    monkeypatch.setattr(writer, "chunks", counting)
    events = EventWriter(writer)
    deltas = [Delta("cmpl-1", index, 0, [1], "x") for index in range(100)]
    written = events.write([*deltas, Finished("cmpl-1", 100, Usage(1, 100, 0))])
    assert written.count(b'"x"') == 100
    assert len(built) <= 2, "one to begin, one to learn from"
