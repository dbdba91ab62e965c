"""What the real models say undisturbed: every job of theirs is asked for once more, in quiet."""

from __future__ import annotations

import httpx

from tests.chaos.jobs import REAL_MODEL
from tests.chaos.verdict import Record, compare
from tests.worker_bench import texts_of
from worker.wire.messages import Prompts

LIMIT_S = 120.0


async def judge_real(url: str, records: dict[str, Record]) -> list[str]:
    """Compare each real job's log with the answer to the same request on a server at rest."""
    wrong = []
    async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http:
        for job_id, record in records.items():
            if record.job.model == REAL_MODEL and record.deltas:
                expected = await _ask_again(http, record)
                seen = texts_of(record.deltas)
                wrong += [
                    f"{job_id}: {fault}"
                    for fault in compare(seen, expected, record.status == "finished")
                ]
    return wrong


async def _ask_again(http: httpx.AsyncClient, record: Record) -> dict[int, str]:
    job = record.job
    assert isinstance(job.input, Prompts)
    body = {
        "model": job.model,
        "prompt": job.input.prompts[0],
        "seed": job.sampling.seed,
        "max_tokens": job.sampling.max_tokens,
        "temperature": job.sampling.temperature,
        "n": job.n,
        "ignore_eos": True,
    }
    response = await http.post("/v1/completions", json=body)
    response.raise_for_status()
    return {choice["index"]: choice["text"] for choice in response.json()["choices"]}
