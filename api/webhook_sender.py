"""Sends the webhooks of ended jobs, and ends jobs that have waited too long.

Every API process does this; who takes a webhook has it for a lease. A sender that dies leaves it to
the next, so a receiver may get it twice, with the same `webhook-id`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from datetime import UTC, datetime

import httpx
import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.errors import ApiError
from api.job_desk import JobDesk
from api.job_schemas import Job
from api.settings import ApiSettings
from api.webhook_signature import secret_bytes, signed_headers
from api.webhook_target import RefusedTargetError, find_target
from worker.wire import chores
from worker.wire.chores import DueWebhook
from worker.wire.job_views import HookNote

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 10  # the last one 8 hours after the first
MAX_PAUSE_S = 7200.0
MAX_AT_ONCE = 16
MAX_BODY_BYTES = 1024 * 1024  # a larger one goes without the answer
SHUTDOWN_S = 2.0
GONE = 410  # the receiver wants no more of it


class WebhookSender:
    """A task beside the requests. `start` it once, `close` it last."""

    def __init__(self, redis: Redis, desk: JobDesk, settings: ApiSettings) -> None:
        self._redis = redis
        self._desk = desk
        self._settings = settings
        self._deliveries: set[asyncio.Task[None]] = set()
        self._http = httpx.AsyncClient(
            # The system's certificates; neither proxies nor passwords out of the environment.
            verify=ssl.create_default_context(),
            trust_env=False,
            follow_redirects=False,
            # Kept by address alone, a connection would serve names that its certificate does not.
            limits=httpx.Limits(max_keepalive_connections=0),
            timeout=settings.webhook_timeout_s,
            headers={"User-Agent": "dfastllm-webhook", "Content-Type": "application/json"},
        )

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run())

    async def close(self) -> None:
        tasks = [self._loop, *self._deliveries]
        for task in tasks:
            task.cancel()
        # What it was sending is due again when its lease runs out: no reason to wait for long.
        await asyncio.wait(tasks, timeout=SHUTDOWN_S)
        await self._http.aclose()

    async def _run(self) -> None:
        while True:
            try:
                await self._take()
            except (RedisError, OSError) as error:
                logger.warning("cannot look for webhooks: %s", type(error).__name__)
            except Exception:  # boundary: one look; the next may find better
                logger.exception("looking for webhooks failed")
            await asyncio.sleep(self._settings.chores_s)

    async def _take(self) -> None:
        due = await chores.do_chores(
            self._redis,
            limit=MAX_AT_ONCE - len(self._deliveries),
            lease_s=self._settings.webhook_lease_s,
            max_attempts=MAX_ATTEMPTS,
        )
        for webhook in due:
            task = asyncio.create_task(self._deliver(webhook))
            self._deliveries.add(task)
            task.add_done_callback(self._deliveries.discard)

    async def _deliver(self, due: DueWebhook) -> None:
        try:
            job, secret = await self._desk.look_with_secret(due.job_id, due.tenant)
            if job.webhook is None:
                return
            state, note = await self._send(job, job.webhook.url, secret, due)
            again_in_s = self._pause_s(due.attempt) if state == "pending" else None
            await chores.settle(self._redis, due, state, note, again_in_s)
        except (ApiError, RedisError, OSError) as error:
            # Its lease will run out.
            logger.warning("webhook of %s: %s", due.job_id, type(error).__name__)
        except Exception:  # boundary: one delivery
            logger.exception("webhook of %s", due.job_id)

    async def _send(self, job: Job, url: str, secret: str, due: DueWebhook) -> tuple[str, HookNote]:
        """Try once; returns the delivery's state after it."""
        error, status = None, None
        try:
            key = secret_bytes(secret or self._settings.webhook_secret)
            status = await self._post(url, message_of(job), key, f"{due.job_id}-{due.event}")
        except (RefusedTargetError, ValueError) as fault:
            return "failed", HookNote(time.time(), None, f"The webhook {fault}.")
        except (httpx.HTTPError, OSError) as fault:  # a timeout is an OSError
            error = type(fault).__name__
        note = HookNote(time.time(), status, error)
        if status is not None and 200 <= status < 300:
            return "delivered", note
        is_over = status == GONE or due.attempt >= MAX_ATTEMPTS
        return "failed" if is_over else "pending", note

    async def _post(self, url: str, body: bytes, key: bytes, message_id: str) -> int:
        """Send a body and return the status; what the receiver says more is not read."""
        async with asyncio.timeout(self._settings.webhook_timeout_s):
            target = await find_target(url, self._settings.webhook_networks)
            headers = signed_headers(key, message_id, int(time.time()), body)
            async with self._http.stream(
                "POST",
                target.url,
                content=body,
                headers={**headers, "Host": target.host_header, "Connection": "close"},
                extensions={"sni_hostname": target.host},
            ) as response:
                return response.status_code

    def _pause_s(self, attempt: int) -> float:
        """Return how long to wait after an attempt, from 1: longer each time, never in step."""
        pause_s = self._settings.webhook_pause_s * 4 ** (attempt - 1)
        return float(min(MAX_PAUSE_S, pause_s)) * random.uniform(0.8, 1.2)


def message_of(job: Job) -> bytes:
    """Return a webhook's body: the job as GET shows it, in the envelope of standardwebhooks.com."""
    body = _message(job)
    return (
        body
        if len(body) <= MAX_BODY_BYTES
        else _message(msgspec.structs.replace(job, response=None))
    )


def _message(job: Job) -> bytes:
    ended = datetime.fromtimestamp(job.ended_at or time.time(), UTC)
    stamp = ended.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return msgspec.json.encode({"type": f"job.{job.status}", "timestamp": stamp, "data": job})
