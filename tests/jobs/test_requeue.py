"""What an operator puts back with RQ's own tools runs, though its client is long gone."""

from __future__ import annotations

import subprocess

import httpx

from tests.api.scripted_worker import ScriptedWorker
from tests.jobs.servers import CHAT, chat, look
from tests.valkey import Valkey
from tests.worker.test_job_store_rq import BIN, dashboard
from worker.wire import keys


def test_what_failed_is_requeued_by_rqs_command_and_from_the_dashboard(
    api: httpx.Client, worker: ScriptedWorker, valkey: Valkey
) -> None:
    response = api.post(CHAT, json=chat(max_queue_time=0.1))
    assert response.status_code == 504  # its client has gone with this
    (key,) = worker.redis.scan_iter(keys.job("*"))
    job_id = key.decode().removeprefix(keys.job(""))
    queue = keys.queue_name("tiny")
    subprocess.run(
        [str(BIN / "rq"), "requeue", "-u", valkey.url, "--queue", queue, job_id],
        check=True,
        timeout=60,
        capture_output=True,
    )
    assert look(api, job_id)["status"] == "queued"
    worker.claim()
    worker.refuse()
    assert look(api, job_id)["status"] == "failed"
    with dashboard(valkey.url) as get:
        assert b"OK" in get(f"/job/{job_id}/requeue", b"")
    worker.claim()
    worker.accept()
    worker.say("at last")
    worker.finish()
    done = look(api, job_id)
    assert (done["status"], done["attempts"]) == ("finished", 2)
    assert done["response"]["body"]["choices"][0]["message"]["content"] == "at last"
