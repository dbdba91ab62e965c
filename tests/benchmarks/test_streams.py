"""Paced streams: the engine that paces, the client that reads, and both around a real server."""

from __future__ import annotations

import asyncio
import time

import pytest

from benchmarks.model_free import cpu_seconds, whole_path
from benchmarks.paced_worker import PacedEngine
from benchmarks.stream_client import Report, StreamReader
from benchmarks.streams import sample
from engine.request.outputs import FinishReason
from engine.request.sampling_params import SamplingParams

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def _event(moment_ns: int) -> bytes:
    return b'id: 0\ndata: {"choices":[{"index":0,"text":"%d;"}]}\n\n' % moment_ns


class _Transport(asyncio.Transport):
    is_closed = False

    def write(self, data: object) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


def test_each_sequence_gets_a_token_a_step_that_names_the_moment() -> None:
    engine = PacedEngine(step_s=0.001, max_batch_size=2)
    for name in "abc":
        engine.add(engine.make_sequence(name, [1], SamplingParams(max_tokens=2)))
    before = time.monotonic_ns()
    first, second, third = engine.step(), engine.step(), engine.step()
    moments = [int(outputs[0].text.removesuffix(";")) for outputs in (first, second, third)]
    assert [output.sequence_id for output in first] == ["a", "b"]
    assert [output.finish_reason for output in second] == [FinishReason.LENGTH] * 2
    assert [output.sequence_id for output in third] == ["c"], "a place is free again"
    assert before <= moments[0] < moments[1] < moments[2] <= time.monotonic_ns()


@pytest.mark.anyio
@pytest.mark.parametrize("size", [1, 7, 50, 10_000])
async def test_a_token_is_counted_once_however_its_bytes_are_cut(size: int) -> None:
    report = Report()
    reader = StreamReader(b"", report)
    transport = _Transport()
    reader.connection_made(transport)
    reader.send()
    sent_ns = time.monotonic_ns()
    data = HEAD + b": queued\n\n" + b"".join(_event(sent_ns) for _ in range(3))
    data += b'data: {"choices":[{"index":0,"text":"%d;%d;"}]}\n\n' % (sent_ns, sent_ns)
    data += b"data: [DONE]\n\n"
    for start in range(0, len(data), size):
        reader.data_received(data[start : start + size])
    assert len(report.way_ms) == 5
    assert all(way >= 0 for way in report.way_ms)
    assert (len(report.opened_ms), len(report.first_ms), report.num_complete) == (1, 1, 1)
    assert transport.is_closed


@pytest.mark.anyio
async def test_a_refusal_stops_the_client() -> None:
    reader = StreamReader(b"", Report())
    with pytest.raises(SystemExit, match="503"):
        reader.data_received(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")


def test_real_streams_arrive_whole_and_every_part_is_accounted_for() -> None:
    with whole_path("benchmarks.paced_worker", "--step-s", "0.01", "--max-batch-size", "8") as path:
        figures = sample(path, num_streams=4, num_tokens=6)
        assert all(cpu_seconds(pid) > 0 for pid in path.pids.values())
    assert figures["num_tokens"] == 24
    assert figures["num_lost"] == 0
    assert figures["num_complete"] == 4
    assert 0 < figures["way_ms_p50"] <= figures["way_ms_p99"] <= figures["way_ms_max"]
    assert figures["client_cpu_s_1k"] > 0
