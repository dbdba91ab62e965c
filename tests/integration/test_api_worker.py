"""API, queue and worker process together, as a client meets them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import openai

from api.app import create_app
from api.settings import ApiSettings
from tests.api.fakes import serving
from tests.stack import api_process, wait_until_ready
from tests.valkey import Valkey
from tests.worker_bench import running_worker

PROMPT = "Once upon a time"
STOP_LIMIT_S = 8.0  # 3 s of grace for open streams, and a slow machine


@contextmanager
def _api(server: Valkey) -> Iterator[str]:
    with serving(create_app(ApiSettings(redis_url=server.url))) as url:
        yield url


def _client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


async def _streamed(
    client: openai.AsyncOpenAI, seed: int, max_tokens: int, heard: asyncio.Event | None = None
) -> str:
    stream = await client.completions.create(
        model="fake", prompt=PROMPT, seed=seed, max_tokens=max_tokens, stream=True
    )
    text = ""
    async for chunk in stream:
        text += chunk.choices[0].text
        if heard is not None:
            heard.set()
    return text


async def _whole(client: openai.AsyncOpenAI, seed: int, max_tokens: int) -> str:
    answer = await client.completions.create(
        model="fake", prompt=PROMPT, seed=seed, max_tokens=max_tokens
    )
    return answer.choices[0].text


def test_many_streams_at_once_say_what_each_says_alone(valkey: Valkey) -> None:
    async def compare(url: str) -> None:
        async with _client(url) as client:
            streams = await asyncio.gather(*(_streamed(client, seed, 60) for seed in range(24)))
            for seed in (0, 11, 23):
                assert await _whole(client, seed, 60) == streams[seed]
            assert len(set(streams)) == 24
            assert all(len(text) == 60 for text in streams)

    with _api(valkey) as url, running_worker(valkey, "w1", max_batch_size=8):
        wait_until_ready(url)
        asyncio.run(compare(url))


def test_a_stream_goes_on_where_its_dead_worker_stopped(valkey: Valkey) -> None:
    async def interrupt(url: str, victim: subprocess.Popen[bytes]) -> tuple[str, str]:
        async with _client(url) as client:
            heard = asyncio.Event()
            streaming = asyncio.create_task(_streamed(client, 5, 80, heard))
            await heard.wait()
            victim.kill()
            assert not streaming.done()
            return await streaming, await _whole(client, 5, 80)

    with _api(valkey) as url, running_worker(valkey, "w1", step_s=0.02, lease=1.5) as victim:
        wait_until_ready(url)
        with running_worker(valkey, "w2", lease=1.5):
            # The second worker is still starting when the request comes: the first one takes it.
            streamed, whole = asyncio.run(interrupt(url, victim))
    assert streamed == whole
    assert len(streamed) == 80


def test_a_server_told_to_stop_does_not_wait_for_its_streams(valkey: Valkey) -> None:
    body = {"model": "fake", "prompt": "x", "max_tokens": 1000, "stream": True}
    with (
        api_process(valkey) as (url, process),
        running_worker(valkey, "w1", step_s=0.5),
        httpx.Client(timeout=30) as client,
    ):
        wait_until_ready(url)
        request = client.build_request("POST", f"{url}/v1/completions", json=body)
        client.send(request, stream=True)
        started = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        process.wait(STOP_LIMIT_S)
        assert time.monotonic() - started < STOP_LIMIT_S


def test_a_stopping_server_hands_its_streams_over(valkey: Valkey) -> None:
    body = {"model": "fake", "prompt": "x", "max_tokens": 100, "stream": True}
    with (
        api_process(valkey) as (url, process),
        running_worker(valkey, "w1", step_s=0.1),
        httpx.Client(timeout=30) as client,
    ):
        wait_until_ready(url)
        lines: list[str] = []
        with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
            job_id = answer.headers["X-Job-Id"]
            with contextlib.suppress(httpx.TransportError):
                for line in answer.iter_lines():
                    lines.append(line)
                    if len(lines) == 10:
                        os.kill(process.pid, signal.SIGTERM)
        process.wait(STOP_LIMIT_S)
        assert "[DONE]" not in "".join(lines)
        with api_process(valkey) as (other, _):
            wait_until_ready(other)
            last = [line for line in lines if line.startswith("id: ")][-1].removeprefix("id: ")
            headers = {"Last-Event-ID": last}
            rest = client.get(f"{other}/v1/jobs/{job_id}/events", headers=headers).text
            whole = client.get(f"{other}/v1/jobs/{job_id}").json()["response"]["body"]
    text = "".join(_texts([*lines, *rest.splitlines()]))
    assert text == whole["choices"][0]["text"]
    assert len(text) == 100


def _texts(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))["choices"][0]["text"]
