"""Hosts whose clocks are hours off, or jump: leases and deadlines are Redis' clock alone.

The clocks are those that Python shows a process (`tests.shifted_clock`); the server's is right.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen

import redis

from tests.stack import (
    Stream,
    api_process,
    attempts,
    body_of,
    spawn,
    undisturbed,
    wait_for_status,
    wait_until_ready,
)
from tests.valkey import Valkey
from tests.worker_bench import listening, make_job, put, wait_for_worker
from worker.wire.messages import Failed

HOUR_S = 3600.0
LEASE_S = 1.0


@contextmanager
def _worker(server: Valkey, name: str, clock_s: float, step_s: float) -> Iterator[Popen[bytes]]:
    process = spawn(
        "tests.shifted_clock", str(clock_s), "tests.fake_worker", f"--redis-url={server.url}",
        f"--name={name}", f"--step-s={step_s}", f"--lease={LEASE_S}",
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_an_api_ahead_and_a_worker_behind_serve_each_other(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    with (
        api_process(valkey, clock_s=-5 * HOUR_S) as (behind, api),
        api_process(valkey, clock_s=7 * HOUR_S) as (ahead, _),
        _worker(valkey, "w1", 2 * HOUR_S, 0.02) as worker,
    ):
        wait_until_ready(behind, ahead)
        streams = [Stream(url, body_of(url, 60, stream=True)) for url in (behind, ahead)]
        for stream in streams:
            stream.wait_for(5)
        api.send_signal(signal.SIGUSR2)  # both jump by an hour in mid-stream
        worker.send_signal(signal.SIGUSR2)
        for stream in streams:
            stream.assert_whole(undisturbed(stream.url, 60))


def test_no_lease_runs_out_early_because_a_clock_is_ahead(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    with _worker(valkey, "behind", -24 * HOUR_S, 0.05):
        wait_for_worker(redis_client, "behind")
        put(valkey, make_job("job", max_tokens=40))
        wait_for_status(redis_client, "job", "started")
        with _worker(valkey, "ahead", 24 * HOUR_S, 0.05):
            wait_for_status(redis_client, "job", "finished")
    assert attempts(redis_client, "job") == 1


def test_a_lease_runs_out_in_time_though_the_reapers_clock_is_behind(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    with _worker(valkey, "ahead", 24 * HOUR_S, 0.05) as dead:
        wait_for_worker(redis_client, "ahead")
        put(valkey, make_job("job", max_tokens=60))
        wait_for_status(redis_client, "job", "started")
        dead.kill()
        with _worker(valkey, "behind", -24 * HOUR_S, 0.001):
            wait_for_status(redis_client, "job", "finished")
    assert attempts(redis_client, "job") == 2


def test_a_deadline_is_kept_by_a_worker_whose_clock_is_behind(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    with listening(redis_client) as listener, _worker(valkey, "w1", -24 * HOUR_S, 0.01):
        wait_for_worker(redis_client, "w1")
        began = time.monotonic()
        put(valkey, make_job("job", max_tokens=3000, timeout_s=0.5))
        listener.wait_for_endings("job")
        ending = listener.ending("job")
    assert isinstance(ending, Failed) and ending.code == "timeout"
    assert time.monotonic() - began > 0.4
