"""Clients that submit a job and come back for it, asking again until they have its answer."""

from __future__ import annotations

import asyncio
import random

import httpx

from tests.chaos.outcome import Outcome, take_body

ASK_S = 0.25
GONE = {"failed", "canceled", "expired"}


async def submit_and_poll(
    http: httpx.AsyncClient, urls: list[str], rng: random.Random, outcome: Outcome
) -> None:
    """Submit by an Idempotency-Key until an API accepts, and poll at any API until it has ended."""
    key = {"Idempotency-Key": f"chaos-{outcome.job.number}"}
    body = {"url": "/v1/completions", "body": outcome.job.body}
    while not outcome.job_id:
        try:
            answer = await http.post(f"{rng.choice(urls)}/v1/jobs", json=body, headers=key)
        except httpx.TransportError:
            outcome.num_resumes += 1
        else:
            outcome.status = answer.status_code
            if answer.status_code == 202:
                outcome.job_id = answer.json()["id"]
            elif answer.status_code != 503:
                outcome.how, outcome.code = "failed", answer.text
                return
        await asyncio.sleep(ASK_S)
    while outcome.how == "running":
        await asyncio.sleep(ASK_S)
        await _look(http, f"{rng.choice(urls)}/v1/jobs/{outcome.job_id}", outcome)


async def _look(http: httpx.AsyncClient, url: str, outcome: Outcome) -> None:
    try:
        answer = await http.get(url)
    except httpx.TransportError:
        return
    if answer.status_code == 404:
        outcome.how, outcome.code = "failed", "forgotten"
    elif answer.status_code == 200:
        job = answer.json()
        if job["status"] == "finished":
            take_body(outcome, job["response"]["body"])
        elif job["status"] in GONE:
            outcome.how = "failed"
            outcome.code = job["response"]["body"]["error"]["code"] or ""
