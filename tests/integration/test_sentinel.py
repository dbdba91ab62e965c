"""Sentinel: the master dies or freezes amid streams, and they go on over the replica."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import redis

from api.app import create_app
from api.redis_connection import check_redis
from api.settings import ApiSettings, SettingsError
from tests.api.fakes import serving
from tests.sentinels import PASSWORD, Watched, watched_servers
from tests.worker_bench import make_job, running_worker, undisturbed_texts, wait_for_model
from worker.redis_connection import connect
from worker.wire import keys
from worker.wire.messages import Prompts

NUM_TOKENS = 200
NUM_STREAMS = 4


@pytest.fixture(scope="module")
def undisturbed() -> Iterator[Watched]:
    with watched_servers() as watched:
        yield watched


@pytest.fixture
def watched() -> Iterator[Watched]:
    with watched_servers() as watched:
        yield watched


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_streams_outlive_the_failover_of_the_master_byte_for_byte(
    watched: Watched, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A frozen server hangs up on nobody: only time tells.
    monkeypatch.setattr("api.reply_channel.SILENCE_S", 0.5)
    settings = ApiSettings(redis_url=f"{watched.url('api')}&socket_timeout=0.5", sweep_s=0.2)
    url = f"{watched.url('worker')}&socket_timeout=0.5"
    with (
        running_worker(watched.first, "w1", redis_url=url, step_s=0.01),  # type: ignore[arg-type]
        serving(create_app(settings)) as api,
        ThreadPoolExecutor(NUM_STREAMS) as pool,
    ):
        with watched.first.connect() as client:
            wait_for_model(client)
        streams = [pool.submit(_stream, api, number) for number in range(NUM_STREAMS)]
        with watched.first.connect() as client:
            _wait_until_running(client)
        watched.wait_until_replicated()
        watched.first.process.send_signal(how)
        watched.wait_for_failover()
        texts = [stream.result(60) for stream in streams]
        # Whoever comes now finds the new master, and RQ knows the worker there.
        assert _stream(api, 0) == texts[0]
        with watched.second.connect() as client:
            assert client.exists(keys.worker("w1"))
            states = [client.hmget(key, "status", "dfl_attempt") for key in client.keys("rq:job:*")]
    assert watched.refusals() == []
    assert states == [[b"finished", b"1"]] * (NUM_STREAMS + 1)
    for number, text in enumerate(texts):
        assert text == _undisturbed(number)


def test_a_service_that_no_sentinel_knows_is_said_to_be_away(undisturbed: Watched) -> None:
    url = undisturbed.url("worker").replace("/mymaster/", "/another/")
    with connect(url) as client, pytest.raises(redis.RedisError, match="No master found"):
        client.ping()


def test_a_wrong_password_for_the_sentinels_stops_the_start_unseen(undisturbed: Watched) -> None:
    url = undisturbed.url("api").replace(PASSWORD, "s3cr3t")
    with pytest.raises(SettingsError, match="VDIFF_REDIS_URL") as caught:
        asyncio.run(check_redis(url))
    assert "s3cr3t" not in str(caught.value)


def _stream(api: str, number: int) -> str:
    body = {"model": "fake", "prompt": f"p{number}", "max_tokens": NUM_TOKENS, "seed": 7}
    text = ""
    with httpx.stream(
        "POST", f"{api}/v1/completions", json=body | {"stream": True}, timeout=60
    ) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    assert line == "data: [DONE]" or not line
    return text


def _undisturbed(number: int) -> str:
    job = make_job("alone", input=Prompts([f"p{number}"]), max_tokens=NUM_TOKENS)
    return undisturbed_texts(job)[0]


def _wait_until_running(client: redis.Redis) -> None:
    deadline = time.monotonic() + 20
    while len([key for key in client.keys("dfl:log:*") if client.xlen(key) > 5]) < NUM_STREAMS:
        assert time.monotonic() < deadline
        time.sleep(0.02)
