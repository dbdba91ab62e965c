"""What must be true after a chaos run, looked up in Redis, in RQ's own words and at the clients."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from tests.chaos.jobs import REAL_MODEL
from tests.chaos.outcome import Outcome
from tests.fakes import LETHAL, FakeEngine
from tests.worker_bench import logged_deltas, texts_of
from worker.job_store import Claim
from worker.running_job import RunningJob
from worker.wire import codec, keys
from worker.wire.messages import Delta, Failed, Finished, GenerateJob, Prompts

AUDIT = (Path(__file__).parent / "audit.lua").read_text("utf-8")
EXCUSES = {"cancelled", "worker_lost", "forgotten", "output_lost"}
GAVE_UP = {"left", "refused", "cut"}
ENDED = {"finished", "failed", "stopped", "canceled"}
LASTING = {
    "rq:queues": "RQ's list of queues: as many as models and priorities",
    "rq:workers": "RQ's list of workers: the reaper takes the dead off",
    "rq:workers:": "the same for a queue",
    "rq:finished:": "the reaper trims it by score",
    "rq:failed:": "the reaper trims it by score",
    "rq:canceled:": "the reaper trims it by score",
    "dfl:workers": "each beat trims it by score",
    "dfl:models": "each beat trims it by score",
    "dfl:waiting": "the API's chores take off what waits no longer",
    "dfl:webhooks": "the API's chores take off what is delivered or given up",
}
"""Keys without a TTL, and why they may be."""


@dataclass(frozen=True)
class Record:
    """One job as Redis remembers it."""

    job: GenerateJob
    queue: str
    status: str
    attempt: int
    ending: Finished | Failed | None
    deltas: list[Delta]
    num_results: int

    @property
    def is_poison(self) -> bool:
        return LETHAL in _prompt(self.job)


def audit(client: redis.Redis) -> list[str]:
    """Return what does not hold at this moment: every job in exactly one place."""
    return [line.decode() for line in client.eval(AUDIT, 0, keys.RQ_PREFIX)]


def read_records(client: redis.Redis) -> dict[str, Record]:
    """Return every job that Redis knows, by its id."""
    return {
        key.decode().rsplit(":", 1)[1]: _record(client, key)
        for key in client.scan_iter(match=keys.job("*"), count=500)
    }


def judge_jobs(records: dict[str, Record]) -> list[str]:
    """Return what is wrong with the jobs' ends, with their logs, and with what they say."""
    wrong = []
    for job_id, record in records.items():
        wrong += [f"{job_id}: {fault}" for fault in _faults_of(record)]
    return wrong


def judge_clients(outcomes: list[Outcome], records: dict[str, Record]) -> list[str]:
    """Return what is wrong with what the clients have seen."""
    wrong = []
    by_prompt = {_prompt(record.job): record for record in records.values()}
    if len(by_prompt) < len(records):
        wrong.append(f"{len(records) - len(by_prompt)} requests were made into two jobs")
    for outcome in outcomes:
        faults = _faults_seen(outcome, by_prompt.get(outcome.job.prompt))
        wrong += [f"client {outcome.job.number} ({outcome.job_id}): {fault}" for fault in faults]
    return wrong


def num_forgotten(outcomes: list[Outcome], records: dict[str, Record]) -> int:
    """Count the jobs that clients were told of, and that Redis no longer knows."""
    known = {_prompt(record.job) for record in records.values()}
    told = (one for one in outcomes if one.job_id or one.code in ("worker_lost", "forgotten"))
    return sum(outcome.job.prompt not in known for outcome in told)


def was_reopened(record: Record) -> bool:
    """Say whether a job may have ended before Redis lost that, to die with three workers since."""
    return record.status == "failed" and _code(record) == "worker_lost"


def num_reopened(outcomes: list[Outcome], records: dict[str, Record]) -> int:
    """Count the jobs whose clients have seen an end that Redis no longer knows."""
    failed = {_prompt(record.job) for record in records.values() if record.status != "finished"}
    return sum(one.how == "finished" and one.job.prompt in failed for one in outcomes)


def judge_keys(client: redis.Redis) -> list[str]:
    """Return the keys that would stay for ever without a reason."""
    return [
        f"{key} has no TTL"
        for key in (one.decode() for one in client.scan_iter(count=1000))
        if client.ttl(key) == -1 and not _may_last(key)
    ]


def judge_workers(client: redis.Redis, names: list[str]) -> list[str]:
    """Return what the workers, idle now, still hold: a page, or a sequence."""
    wrong = []
    for name in names:
        said = client.get(f"{keys.DFL_PREFIX}:worker:{name}")
        metrics = codec.decode_worker_info(said).metrics if said else {}
        held, faults = metrics.get("num_pages_held"), metrics.get("num_page_faults")
        if held != 0 or faults != 0:
            wrong.append(f"worker {name}: {held} pages held, check failed: {faults}")
        if client.scard(f"{keys.worker(name)}:executions"):
            wrong.append(f"worker {name} still holds jobs, to RQ")
    return wrong


def judge_rq_info(url: str, records: dict[str, Record]) -> list[str]:
    """Compare what `rq info` shows with the jobs that there are."""
    command = [str(Path(sys.executable).parent / "rq"), "info", "-u", url, "--raw", "--only-queues"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    said = {line.split()[1]: line for line in shown.splitlines() if line.startswith("queue ")}
    wrong = []
    for queue in sorted({record.queue for record in records.values()}):
        own = Counter(record.status for record in records.values() if record.queue == queue)
        num_failed = own["failed"] + own["stopped"]
        expected = (
            f"queue {queue} {own['queued']}, {own['started']} executing, "
            f"{own['finished']} finished, {num_failed} failed"
        )
        if said.get(queue) != expected:
            wrong.append(f"rq info says {said.get(queue)!r}, not {expected!r}")
    return wrong


def statuses(records: dict[str, Record]) -> Counter[str]:
    return Counter(record.status for record in records.values())


def undisturbed_texts(job: GenerateJob) -> dict[int, str]:
    """Return each choice's text as one fake engine alone makes it."""
    engine = FakeEngine(model_name=job.model)
    run = RunningJob(Claim(job, "alone", "queue", 1, []), engine)
    return {number: _text(sequence) for number, sequence in enumerate(run.sequences)}


def _text(sequence: Any) -> str:
    while len(sequence.output) < sequence.max_tokens:
        sequence.output.append(sequence.next_token())
    return bytes(sequence.output).decode()


def _record(client: redis.Redis, key: bytes) -> Record:
    fields = client.hgetall(key)
    job = codec.decode_job(fields[b"dfl"])
    ending = fields.get(b"dfl_ending")
    return Record(
        job=job,
        queue=fields[b"origin"].decode(),
        status=fields[b"status"].decode(),
        attempt=int(fields.get(b"dfl_attempt", 0)),
        ending=codec.decode_event(ending) if ending else None,  # type: ignore[arg-type]
        deltas=logged_deltas(client, job.job_id),
        num_results=client.xlen(f"{keys.RQ_PREFIX}:results:{job.job_id}"),
    )


def _faults_of(record: Record) -> list[str]:
    faults = []
    if record.status not in ENDED:
        return [f"is {record.status}"]
    if record.num_results != (record.status != "canceled"):
        faults.append(f"has {record.num_results} results, being {record.status}")
    if (record.status == "finished") != isinstance(record.ending, Finished):
        faults.append(f"is {record.status}, but its last word was {record.ending}")
    indices = [delta.index for delta in record.deltas]
    if indices != list(range(len(indices))):
        faults.append(f"its log has a hole or a double: {indices}")
    if isinstance(record.ending, Finished) and record.ending.num_deltas != len(indices):
        faults.append(f"its log has {len(indices)} of {record.ending.num_deltas} deltas")
    if record.job.model != REAL_MODEL:
        is_whole = record.status == "finished"
        faults += compare(texts_of(record.deltas), undisturbed_texts(record.job), is_whole)
    if record.is_poison and (record.status != "failed" or record.attempt != 3):
        faults.append(f"poison is {record.status} after {record.attempt} attempts")
    if _code(record) == "worker_lost" and record.attempt < 3:
        faults.append(f"given up as lost after {record.attempt} attempts")
    if record.status == "failed" and _code(record) != "worker_lost":
        faults.append(f"failed: {record.ending}")
    return faults


def _faults_seen(outcome: Outcome, record: Record | None) -> list[str]:
    faults = []
    if outcome.how in ("hung", "running"):
        faults.append("never got an end")
    if outcome.indices != sorted(set(outcome.indices)):
        faults.append(f"deltas doubled or out of order: {outcome.indices}")
    if outcome.how == "failed" and outcome.code not in EXCUSES:
        faults.append(f"failed with {outcome.code!r}")
    if record is None:  # counted by `num_forgotten`
        return faults
    if outcome.how == "finished" and record.status != "finished" and not was_reopened(record):
        faults.append(f"saw the end of a job that is {record.status}")
    if outcome.code in ("worker_lost", "forgotten") and record.status != "failed":
        faults.append(f"was told {outcome.code!r} of a job that is {record.status}")
    expected = texts_of(record.deltas)
    if outcome.job.model != REAL_MODEL:
        expected = undisturbed_texts(record.job)
    faults += compare(outcome.texts, expected, outcome.how == "finished")
    if (
        record.status == "canceled"
        and outcome.how not in GAVE_UP
        and (outcome.code not in ("cancelled", "output_lost"))
    ):
        faults.append(f"{outcome.how}, but its job was cancelled")
    if outcome.code == "cancelled" and outcome.job.cancels_after is None:
        faults.append("was cancelled, but did not ask for it")
    return faults


def compare(seen: dict[int, str], expected: dict[int, str], is_whole: bool) -> list[str]:
    """Say where texts differ; those of a stream that was left need only be beginnings."""
    if is_whole:
        return [] if seen == expected else [f"says {seen}, not {expected}"]
    return [
        f"choice {choice} says {text!r}, which does not begin {expected.get(choice)!r}"
        for choice, text in seen.items()
        if not expected.get(choice, "").startswith(text)
    ]


def _code(record: Record) -> str:
    return getattr(record.ending, "code", "") or ""


def _prompt(job: GenerateJob) -> str:
    assert isinstance(job.input, Prompts)
    return str(job.input.prompts[0])


def _may_last(key: str) -> bool:
    return any(key == name or (name.endswith(":") and key.startswith(name)) for name in LASTING)
