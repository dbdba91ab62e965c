"""One chaos run: start everything, let jobs and faults meet, heal, and give a verdict."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import redis
import redis.asyncio
from redis.exceptions import RedisError

from tests.chaos import verdict
from tests.chaos.clients import Clients
from tests.chaos.cluster import Cluster
from tests.chaos.faults import Fault, heal, plan_faults, strike
from tests.chaos.jobs import FAKE_MODELS, REAL_MODEL, plan_jobs
from tests.chaos.outcome import Outcome
from tests.chaos.reference import judge_real
from tests.valkey import running_valkey
from worker.wire import keys, queueing

TICK_S = 0.2
AUDIT_S = 0.5
START_LIMIT_S = 60.0
SETTLE_LIMIT_S = 60.0


@dataclass(frozen=True)
class Plan:
    """What a run is made of; all that chance decides comes from the seed."""

    seed: int
    num_jobs: int = 300
    num_faults: int = 30
    length_s: float = 45.0
    with_real: bool = False


@dataclass
class Report:
    """What came of it."""

    plan: Plan
    faults: list[Fault] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)  # as the clients saw them
    num_forgotten: int = 0
    num_poison: int = 0
    num_audits: int = 0
    num_reruns: int = 0
    num_deaths: int = 0
    seconds: float = 0.0
    evidence: str = ""

    @property
    def kinds(self) -> Counter[str]:
        return Counter(fault.kind for fault in self.faults)


def run(plan: Plan) -> Report:
    """Do one run from beginning to end; what is wrong stands in the report."""
    folder = Path(tempfile.mkdtemp(prefix="dflchaos"))
    report = Report(plan)
    started = time.monotonic()
    with running_valkey() as server:
        cluster = Cluster(folder, server, with_real=plan.with_real)
        try:
            asyncio.run(_Run(plan, cluster, report).go())
        finally:
            cluster.stop()
    report.seconds = time.monotonic() - started
    if report.wrong:
        report.evidence = str(folder)
    else:
        shutil.rmtree(folder)
    return report


class _Run:
    """The phases of one run."""

    def __init__(self, plan: Plan, cluster: Cluster, report: Report) -> None:
        self._plan = plan
        self._cluster = cluster
        self._report = report
        self._redis = cluster.server.connect_async()

    async def go(self) -> None:
        clients = Clients(self._cluster.urls, self._plan.seed)
        async with self._redis:
            self._cluster.tick()
            await self._wait_for_models()
            async with self._kept_alive(), self._audited():
                await self._fire(clients)
                await heal(self._cluster, self._redis)
                await self._settle()
            await self._judge(clients.outcomes)

    async def _fire(self, clients: Clients) -> None:
        plan = self._plan
        jobs = plan_jobs(plan.seed, plan.num_jobs, plan.length_s, with_real=plan.with_real)
        faults = plan_faults(plan.seed, plan.num_faults, plan.length_s)
        self._report.num_poison = sum(job.is_poison for job in jobs)
        async with asyncio.TaskGroup() as group:
            group.create_task(clients.run(jobs))
            group.create_task(self._strike_all(faults))

    async def _strike_all(self, faults: list[Fault]) -> None:
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, fault.at_s - (time.monotonic() - started)))
                self._report.faults.append(fault)
                group.create_task(self._strike(fault))
        await heal(self._cluster, self._redis)

    async def _strike(self, fault: Fault) -> None:
        with suppress(RedisError, OSError):  # the queue is away: then this fault does not happen
            await strike(self._cluster, self._redis, fault)

    async def _wait_for_models(self) -> None:
        wanted = {*FAKE_MODELS} | ({REAL_MODEL} if self._plan.with_real else set())
        deadline = time.monotonic() + START_LIMIT_S
        while {model.info.name for model in await queueing.known_models(self._redis)} != wanted:
            assert time.monotonic() < deadline, f"the workers do not start: {self._cluster.folder}"
            await asyncio.sleep(0.1)
        async with httpx.AsyncClient() as http:
            for url in self._cluster.urls:
                while not await _answers(http, url):
                    assert time.monotonic() < deadline, f"no API: {self._cluster.folder}"
                    await asyncio.sleep(0.1)

    async def _settle(self) -> None:
        """Wait until nothing waits or runs any more."""
        deadline = time.monotonic() + SETTLE_LIMIT_S
        while time.monotonic() < deadline:
            if not await self._num_unfinished():
                return
            await asyncio.sleep(0.2)

    async def _num_unfinished(self) -> int:
        num = 0
        for model in (*FAKE_MODELS, REAL_MODEL):
            for queue in keys.queue_names(model):
                num += await self._redis.llen(keys.queue(queue))
                num += await self._redis.zcard(f"{keys.RQ_PREFIX}:wip:{queue}")
        return num

    @asynccontextmanager
    async def _kept_alive(self) -> AsyncIterator[None]:
        """Start again whatever dies."""

        async def keep() -> None:
            while True:
                self._cluster.tick()
                await asyncio.sleep(TICK_S)

        task = asyncio.create_task(keep())
        try:
            yield
        finally:
            task.cancel()

    @asynccontextmanager
    async def _audited(self) -> AsyncIterator[None]:
        """Look again and again whether each job is in the one place where its status says."""

        async def watch() -> None:
            while True:
                await asyncio.sleep(AUDIT_S)
                with suppress(RedisError, OSError):
                    self._report.wrong += [
                        f"while it ran: {line.decode()}"
                        for line in await self._redis.eval(verdict.AUDIT, 0, keys.RQ_PREFIX)
                    ]
                    self._report.num_audits += 1

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            task.cancel()

    async def _judge(self, outcomes: list[Outcome]) -> None:
        report, cluster = self._report, self._cluster
        with cluster.server.connect() as client:
            await _wait_until_idle(client, cluster)
            records = verdict.read_records(client)
            report.wrong += verdict.audit(client)
            report.wrong += verdict.judge_jobs(records)
            report.wrong += verdict.judge_clients(outcomes, records)
            report.wrong += verdict.judge_workers(client, [slot.life for slot in cluster.workers])
            report.wrong += verdict.judge_rq_info(cluster.server.url, records)
            report.wrong += verdict.judge_keys(client)
            if self._plan.with_real:
                report.wrong += await judge_real(cluster.urls[0], records)
        report.statuses = verdict.statuses(records)
        report.endings = Counter(_ending(outcome) for outcome in outcomes)
        report.num_forgotten = verdict.num_forgotten(outcomes, records)
        num_torn = sum(outcome.code == "output_lost" for outcome in outcomes)
        num_lost = report.num_forgotten + num_torn + verdict.num_reopened(outcomes, records)
        if num_lost and not report.kinds.keys() & {"kill queue", "power failure"}:
            report.wrong.append("jobs, or their output, were forgotten by a queue that did not die")
        report.num_reruns = sum(max(0, record.attempt - 1) for record in records.values())
        report.num_deaths = sum(slot.num_starts - 1 for slot in cluster.slots)


async def _answers(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(f"{url}/ready")).status_code == 200
    except httpx.TransportError:
        return False


async def _wait_until_idle(client: redis.Redis, cluster: Cluster) -> None:
    """Give every worker the time for a beat in which it says what it still holds."""
    names = [slot.life for slot in cluster.workers]
    deadline = time.monotonic() + START_LIMIT_S
    while verdict.judge_workers(client, names) and time.monotonic() < deadline:
        await asyncio.sleep(0.2)


def _ending(outcome: Outcome) -> str:
    words = [outcome.how] + ([outcome.code] if outcome.code else [])
    if outcome.job.is_background:
        words.insert(0, "polled")
    return " ".join(words) + (" after a resume" if outcome.num_resumes else "")
