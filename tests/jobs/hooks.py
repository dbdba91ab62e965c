"""Jobs with webhooks: submit one, have it end, wait for its delivery."""

from __future__ import annotations

from typing import Any

import httpx

from tests.api.scripted_worker import ScriptedWorker, wait_until
from tests.jobs.receiver import Receiver
from tests.jobs.servers import SECRET, chat, job, look, submit

LOCAL: dict[str, Any] = {"webhook_networks": ("127.0.0.0/8",), "webhook_secret": SECRET}


def submit_hooked(
    api: httpx.Client, receiver: Receiver, secret: str | None = None, **body: Any
) -> str:
    webhook = {"url": receiver.url} | ({} if secret is None else {"secret": secret})
    return str(submit(api, job(chat(**body), webhook=webhook))["id"])


def write_answer(worker: ScriptedWorker) -> None:
    worker.claim()
    worker.accept()
    worker.say("hello")
    worker.finish()


def wait_for_webhook(api: httpx.Client, job_id: str, state: str) -> dict[str, Any]:
    wait_until(lambda: look(api, job_id)["webhook"]["state"] == state, f"it is {state}")
    return dict(look(api, job_id)["webhook"])
