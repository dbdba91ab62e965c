"""What RQ sees of us: birth, death, heartbeat, commands; it never runs a job.

Leans on RQ 3.0: `bootstrap` and `teardown`, `subscribe` with its pub/sub thread, `handle_payload`,
`register_birth`, and the command names of `rq.command`. RQ's own loop (`work`, `execute_job`,
`perform_job`) would import and call whatever function name a job holds, so it is closed here.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from redis import Redis
from redis.client import PubSub, PubSubWorkerThread
from redis.exceptions import RedisError
from rq.suspension import is_suspended
from rq.utils import now
from rq.worker import SimpleWorker

from worker.mailbox import Mailbox
from worker.serializer import RestrictedSerializer
from worker.wire import keys

# RQ gives a worker 60 s more than this before it counts as gone.
WORKER_TTL_S = 30
RECONNECT_S = 0.5


def unique_name() -> str:
    """Return a name nobody had before: RQ refuses one whose last bearer died without a word."""
    return f"{socket.gethostname()}-{secrets.token_hex(4)}"


class BatchWorker(SimpleWorker):
    """Many jobs at once, in one process, without a fork."""

    def __init__(
        self,
        queue_names: Sequence[str],
        connection: Redis,
        *,
        name: str,
        mailbox: Mailbox,
        question_channel: str,
    ) -> None:
        """`connection` must be RQ's own: RQ sets its timeouts. All calls come from its thread."""
        super().__init__(
            list(queue_names),
            name=name,
            connection=connection,
            worker_ttl=WORKER_TTL_S,
            serializer=RestrictedSerializer,
        )
        self._mailbox = mailbox
        self._question_channel = question_channel

    @property
    def connection_timeout(self) -> int:
        """Leave the connection's timeout alone: RQ's is for calls that block, and we make none."""
        return 0

    def begin(self) -> None:
        """Register with RQ and listen for commands and wakes."""
        self.bootstrap(logging_level=None)

    def end(self) -> None:
        """Tell RQ that we are gone."""
        self.teardown()  # type: ignore[no-untyped-call]

    def register_again(self) -> None:
        """Come back after RQ has forgotten us."""
        self.connection.delete(self.key)  # RQ refuses a name whose hash is there
        self.register_birth()  # type: ignore[no-untyped-call]

    def show_draining(self) -> None:
        """Note for RQ's tools, once, that we were asked to stop."""
        if self._shutdown_requested_date is None:
            self._shutdown_requested_date = now()
            self.set_shutdown_requested_date()  # type: ignore[no-untyped-call]

    def are_queues_empty(self) -> bool:
        return all(queue.is_empty() for queue in self.queues)

    def is_suspended(self) -> bool:
        """Say whether `rq suspend` wants no worker to take jobs."""
        return bool(is_suspended(self.connection))

    def out_of_attempts(self, job_ids: Sequence[str]) -> set[str]:
        """Return the jobs that RQ would not retry."""
        with self.connection.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hget(keys.job(job_id), "retries_left")
            counts = pipeline.execute()
        return {name for name, count in zip(job_ids, counts, strict=True) if int(count or 0) < 1}

    def subscribe(self) -> None:
        """Listen, on one connection, to RQ's commands, to wakes and to questions."""
        self.pubsub = self.connection.pubsub()  # type: ignore[no-untyped-call]
        wakes = {keys.wake_channel(queue.name): self._handle_wake for queue in self.queues}
        asked = {self._question_channel: self._handle_question}
        self.pubsub.subscribe(**{self.pubsub_channel_name: self.handle_payload, **wakes, **asked})
        self.pubsub_thread = self.pubsub.run_in_thread(  # type: ignore[assignment]
            sleep_time=60, daemon=True, exception_handler=self._pubsub_exception_handler
        )

    def handle_payload(self, message: dict[str, Any]) -> None:
        """Obey a command; RQ's own handler knows only one job at a time."""
        try:
            payload = json.loads(message["data"])
            command = payload["command"]
        except (ValueError, KeyError, TypeError):
            self.log.warning("ignored a command that cannot be read")
            return
        match command:
            case "stop-job" | "stop-execution":
                self._mailbox.stop_job(str(payload.get("job_id", "")))
            case "shutdown":
                self._mailbox.request_stop()
            case _:
                self.log.warning("ignored the command %r: there is no horse to kill here", command)

    def work(self, *args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError("RQ's loop runs one job at a time; ours is worker.io_loop")

    def execute_job(self, *args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError("jobs are run by the engine; no function of theirs is called")

    def perform_job(self, *args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError("jobs are run by the engine; no function of theirs is called")

    def _handle_wake(self, message: dict[str, Any]) -> None:
        self._mailbox.wake()

    def _handle_question(self, message: dict[str, Any]) -> None:
        self._mailbox.ask()

    def _pubsub_exception_handler(
        self, exc: Exception, pubsub: PubSub, pubsub_thread: PubSubWorkerThread
    ) -> None:
        """Keep the thread alive: a worker deaf to stop commands would look healthy."""
        if not isinstance(exc, RedisError | OSError):
            self.log.error("command thread: %r", exc)
        time.sleep(RECONNECT_S)
