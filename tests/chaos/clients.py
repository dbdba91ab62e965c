"""Clients of a chaos run: each sends one request, behaves as planned, and notes what it sees."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx

from tests.chaos.background import submit_and_poll
from tests.chaos.jobs import ChaosJob
from tests.chaos.outcome import Outcome, take_body

CLIENT_LIMIT_S = 120.0
LEAVE_WITHIN_S = 0.4
ASK_S = 0.2


class ClientLeavesError(Exception):
    """The planned end of a client's patience."""


class Clients:
    """Runs all planned jobs against two APIs; a stream that breaks is resumed at either."""

    def __init__(self, urls: list[str], seed: int) -> None:
        self._urls = urls
        self._rng = random.Random(f"clients {seed}")
        self.outcomes: list[Outcome] = []

    async def run(self, jobs: list[ChaosJob]) -> None:
        """Send each job at its time; returns when all clients have their end."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
        timeout = httpx.Timeout(CLIENT_LIMIT_S)
        async with (
            httpx.AsyncClient(limits=limits, timeout=timeout) as http,
            asyncio.TaskGroup() as group,
        ):
            started = time.monotonic()
            for job in jobs:
                await asyncio.sleep(max(0.0, job.start_s - (time.monotonic() - started)))
                outcome = Outcome(job)
                self.outcomes.append(outcome)
                group.create_task(self._serve(http, outcome))

    async def _serve(self, http: httpx.AsyncClient, outcome: Outcome) -> None:
        try:
            async with asyncio.timeout(CLIENT_LIMIT_S):
                await self._ask(http, outcome)
        except TimeoutError:
            outcome.how = "hung"

    async def _ask(self, http: httpx.AsyncClient, outcome: Outcome) -> None:
        url = f"{self._rng.choice(self._urls)}/v1/completions"
        try:
            if outcome.job.is_background:
                await submit_and_poll(http, self._urls, self._rng, outcome)
            elif outcome.job.stream:
                await self._stream(http, url, outcome)
            else:
                await self._whole(http, url, outcome)
        except httpx.ConnectError:
            outcome.how = "unreachable"
        except httpx.TransportError:
            await self._resume(http, outcome)
        except ClientLeavesError:
            outcome.how = "left"

    async def _whole(self, http: httpx.AsyncClient, url: str, outcome: Outcome) -> None:
        sending = http.post(url, json=outcome.job.body)
        if outcome.job.leaves_after is not None:
            try:
                response = await asyncio.wait_for(sending, self._rng.uniform(0, LEAVE_WITHIN_S))
            except TimeoutError:
                raise ClientLeavesError from None
        else:
            response = await sending
        outcome.status = response.status_code
        if response.status_code == 200:
            take_body(outcome, response.json())
        else:
            _take_refusal(outcome, response.json())

    async def _stream(self, http: httpx.AsyncClient, url: str, outcome: Outcome) -> None:
        if outcome.job.leaves_after == 0:
            try:
                async with asyncio.timeout(self._rng.uniform(0, LEAVE_WITHIN_S)):
                    await self._read(http, url, outcome)
            except TimeoutError:
                raise ClientLeavesError from None
        else:
            await self._read(http, url, outcome)

    async def _read(self, http: httpx.AsyncClient, url: str, outcome: Outcome) -> None:
        job = outcome.job
        async with http.stream("POST", url, json=job.body) as response:
            outcome.status = response.status_code
            if response.status_code != 200:
                _take_refusal(outcome, json.loads(await response.aread()))
                return
            async for _ in _events(response, outcome):
                if len(outcome.indices) == job.cancels_after:
                    await self._cancel(http, outcome.job_id)
                if len(outcome.indices) == job.leaves_after:
                    raise ClientLeavesError
        if outcome.how == "running":
            raise httpx.RemoteProtocolError("the stream ended without [DONE]")

    async def _cancel(self, http: httpx.AsyncClient, job_id: str) -> None:
        with suppress(httpx.TransportError):  # that API is away: this client cancels nothing
            await http.delete(f"{self._rng.choice(self._urls)}/v1/jobs/{job_id}")

    async def _resume(self, http: httpx.AsyncClient, outcome: Outcome) -> None:
        """Read on where the stream broke, from whichever API process answers."""
        if not outcome.job_id or not outcome.job.stream:
            outcome.how = "cut"
            return
        outcome.num_resumes += 1
        while outcome.how == "running":
            url = f"{self._rng.choice(self._urls)}/v1/jobs/{outcome.job_id}/events"
            last = {"Last-Event-ID": str(outcome.indices[-1])} if outcome.indices else {}
            with suppress(httpx.TransportError):
                async with http.stream("GET", url, headers=last) as response:
                    outcome.status = response.status_code
                    if response.status_code == 200:
                        async for _ in _events(response, outcome):
                            pass
                    elif response.status_code == 404:
                        outcome.how, outcome.code = "failed", "forgotten"
                    elif response.status_code != 503:
                        _take_refusal(outcome, json.loads(await response.aread()))
            await asyncio.sleep(ASK_S)


def _take_refusal(outcome: Outcome, body: dict[str, Any]) -> None:
    outcome.how = "refused" if outcome.status in (429, 503) else "failed"
    outcome.code = body["error"]["code"] or ""


async def _events(response: httpx.Response, outcome: Outcome) -> AsyncIterator[None]:
    """Note every event of a stream; yields after each that has text."""
    async for line in response.aiter_lines():
        if line.startswith("id: "):
            outcome.indices.append(int(line[4:]))
        elif line == "data: [DONE]":
            if outcome.how == "running":
                outcome.how = "finished"
        elif line.startswith("data: "):
            event = json.loads(line[6:])
            if "error" in event:
                outcome.how, outcome.code = "failed", event["error"]["code"] or ""
                continue
            outcome.job_id = event["id"]
            for choice in event["choices"]:
                outcome.add(choice["index"], choice["text"])
            yield
