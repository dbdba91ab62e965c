"""`dfastllm serve`: queue, API and workers as children, kept alive, stopped in order."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import FrameType

import redis

from worker.batch_worker import unique_name
from worker.child_process import start_child
from worker.embedded_redis import EmbeddedRedis, EmbeddedRedisError
from worker.front_door import FrontDoor
from worker.job_store import JobStore
from worker.part import Part
from worker.redis_connection import connect
from worker.serve_plan import ServePlan
from worker.wire.logs import set_up_logs

log = logging.getLogger("serve")

TICK_S = 0.2
API_PATIENCE_S = 30.0  # how long open streams may go on once a stop is asked for
WORKER_PATIENCE_S = 10.0  # beyond the worker's own drain time


class SupervisorError(RuntimeError):
    """`serve` cannot go on; the message says what to do."""


def supervise(environ: Mapping[str, str]) -> int:
    """Run the whole server until a signal; raises SettingsError or SupervisorError."""
    plan = ServePlan.read(environ)
    set_up_logs("info", plan.log_format)
    door = FrontDoor(plan)
    door.check_is_free()
    return Supervisor(plan, door).run()


class Supervisor:
    """Owns all child processes; single-threaded, so that starting them is safe."""

    def __init__(self, plan: ServePlan, door: FrontDoor) -> None:
        self._plan = plan
        self._door = door
        self._queue = None if plan.redis_url else EmbeddedRedis(plan.data_dir, plan.queue_port)
        self._redis_url = plan.redis_url or (self._queue.url if self._queue else "")
        self._api = Part("API", lambda: self._start(plan.api_command, signal.SIGTERM))
        self._worker_names: dict[Part, str] = {}
        self._workers = [self._worker_part(number) for number in range(plan.num_workers)]
        self._num_stop_calls = 0
        self._is_announced = False

    def run(self) -> int:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._note_signal)
        try:
            self._start_queue()
            while self._num_stop_calls == 0:
                self._tick()
                time.sleep(TICK_S)
        finally:
            self._stop_all()
        return 0

    def _tick(self) -> None:
        self._revive_queue()
        for part in (self._api, *self._workers):
            code = part.take_exit_code()
            if code is not None:
                self._note_death(part, code)
            part.start_if_due()
        if not self._is_announced and self._door.is_ready():
            self._is_announced = True
            sys.stdout.write(self._door.announcement(self._queue.url if self._queue else None))
            sys.stdout.flush()

    def _note_signal(self, signum: int, frame: FrameType | None) -> None:
        self._num_stop_calls += 1

    def _note_death(self, part: Part, code: int) -> None:
        if not self._is_announced:
            raise SupervisorError(
                f"the {part.name} ended at its start (exit code {code}); see above"
            )
        log.error("the %s has died (exit code %d); starting it again", part.name, code)
        name = self._worker_names.pop(part, None)
        if name is not None:
            self._take_back_jobs(name)

    def _take_back_jobs(self, dead_worker: str) -> None:
        """Requeue a dead worker's jobs now; without this they wait for its leases to run out."""
        try:
            with connect(self._redis_url) as client:
                reaped = JobStore(client, dead_worker).reap_worker(dead_worker)
        except redis.RedisError as error:
            log.warning("the dead worker's jobs wait for its leases to end: %s", error)
        else:
            log.info("%d jobs requeued, %d given up", len(reaped.requeued), len(reaped.failed))

    def _worker_part(self, number: int) -> Part:
        def start() -> subprocess.Popen[bytes]:
            self._worker_names[part] = unique_name()
            # SIGKILL: should we die, the queue is gone, and there is nothing to drain for.
            command = (*self._plan.worker_command, "--name", self._worker_names[part])
            return self._start(command, signal.SIGKILL)

        part = Part(f"worker {number + 1}", start)
        return part

    def _start(
        self, command: Sequence[str], death_signal: signal.Signals
    ) -> subprocess.Popen[bytes]:
        environ = {**self._plan.child_environ, "VDIFF_REDIS_URL": self._redis_url}
        return start_child(command, env=environ, death_signal=death_signal)

    def _start_queue(self) -> None:
        if self._queue is not None:
            try:
                self._queue.start()
            except EmbeddedRedisError as error:
                raise SupervisorError(str(error)) from error

    def _revive_queue(self) -> None:
        if self._queue is not None and not self._queue.is_running:
            log.error("the queue has died; starting it again over its data")
            self._start_queue()

    def _stop_all(self) -> None:
        """API first, so that nothing new comes in; the queue last, so that all can be said."""
        log.info("stopping")
        self._stop([self._api], API_PATIENCE_S)
        self._stop(self._workers, self._plan.drain_timeout_s + WORKER_PATIENCE_S)
        if self._queue is not None:
            self._queue.stop()

    def _stop(self, parts: Iterable[Part], patience_s: float) -> None:
        parts = list(parts)
        for part in parts:
            part.ask_to_stop()
        deadline = time.monotonic() + patience_s
        # A second signal is somebody who does not want to wait.
        while any(part.is_running for part in parts) and self._num_stop_calls < 2:
            if time.monotonic() > deadline:
                break
            time.sleep(TICK_S / 4)
        for part in parts:
            if part.is_running:
                log.warning("the %s does not end by itself", part.name)
                part.kill()
