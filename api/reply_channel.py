"""One pub/sub channel an API process: its frames reach the generations, the log fills the holes.

Pub/sub forgets: redis-py reconnects in silence, Redis drops a subscriber that is too slow. So every
delta has an index, and whatever is missing is read from the job's log: when an index shows a gap,
when the subscription was renewed, and when a job has been silent for a while.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.errors import RequestTimeoutError, UnavailableError
from api.generation import Generation
from worker.wire import codec, keys, queueing
from worker.wire.messages import Event, Failed

logger = logging.getLogger(__name__)

RECONNECT_S = 0.2
CANCEL_AGAIN_S = 0.2
SILENCE_S = 15.0  # a connection on which nothing comes may lead to a server that has frozen
MAX_QUIET_SWEEPS = 4  # a job that waits long in the queue is looked at less often
LATE_S = 2.0  # the worker's own word on a timeout is the better one: give it time to come


class ReplyChannel:
    """Feeds every registered generation until it has ended."""

    def __init__(self, redis: Redis, api_id: str, *, sweep_s: float = 1.0) -> None:
        self._redis = redis
        self._name = keys.reply_channel(api_id)
        self._sweep_s = sweep_s
        self._generations: dict[str, list[Generation]] = {}  # all readers of a job
        self._quiet_sweeps: dict[Generation, int] = {}
        self._refills: set[Generation] = set()
        self._asked: dict[str, asyncio.Future[Event]] = {}
        self._subscribed = asyncio.Event()
        self._follower: asyncio.Task[Any] | None = None
        self._last_heard = math.inf
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        self._spawn(self._listen())
        self._spawn(self._sweep_forever())

    async def wait_subscribed(self, timeout_s: float) -> bool:
        """Wait until answers can be heard: a job enqueued earlier could end unheard."""
        if self._subscribed.is_set():
            return True
        try:
            await asyncio.wait_for(self._subscribed.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            # Python 3.11 loses a cancellation that meets the end of a `wait_for`, as in a send.
            await asyncio.wait(self._tasks, timeout=CANCEL_AGAIN_S)

    def register(self, generation: Generation) -> None:
        self._generations.setdefault(generation.job_id, []).append(generation)

    def unregister(self, generation: Generation) -> None:
        readers = self._generations.get(generation.job_id, [])
        if generation in readers:
            readers.remove(generation)
        if not readers:
            self._generations.pop(generation.job_id, None)
        self._quiet_sweeps.pop(generation, None)

    async def fill(self, generation: Generation) -> None:
        """Give a registered reader what its job has said already; raises UnavailableError."""
        self._refills.add(generation)
        if not await self._check(generation):
            raise UnavailableError("The queue cannot be reached.")

    @contextmanager
    def expecting(self, question_id: str) -> Iterator[asyncio.Future[Event]]:
        """Yield what will hold the answer to a question that is asked within."""
        answer = self._asked[question_id] = asyncio.get_running_loop().create_future()
        try:
            yield answer
        finally:
            del self._asked[question_id]

    async def _listen(self) -> None:
        while True:
            self._last_heard = math.inf  # a connection that is being made has limits of its own
            self._follower = self._spawn(self._follow_until_lost())
            await asyncio.wait([self._follower])

    async def _follow_until_lost(self) -> None:
        try:
            await self._follow()
        except (RedisError, OSError) as error:
            logger.warning("reply channel lost: %s", type(error).__name__)
            self._subscribed.clear()
            await asyncio.sleep(RECONNECT_S)

    async def _follow(self) -> None:
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(self._name)
            async for message in pubsub.listen():
                self._last_heard = time.monotonic()
                if message["type"] == "message":
                    self._deliver(message["data"])
                elif message["type"] == "subscribe":
                    # Not only the first time: the client renews a dropped connection by itself.
                    self._subscribed.set()
                    for generation in self._all():
                        self._refill(generation)

    def _deliver(self, data: bytes) -> None:
        try:
            frame = codec.decode_frame(data)
        except codec.UnreadableError:
            logger.warning("unreadable frame of %d bytes on the reply channel", len(data))
            return
        for event in frame.events:
            self._hear(event)
            for generation in self._generations.get(event.job_id, ()):  # none: they have gone
                generation.put(event)
                if generation.has_gap:
                    self._refill(generation)

    def _hear(self, event: Event) -> None:
        """Take what may be the answer to a question."""
        answer = self._asked.get(event.job_id)
        if answer is not None and not answer.done():
            answer.set_result(event)

    def _refill(self, generation: Generation) -> None:
        """Read the job's log beside the listener, which must go on; one reading at a time."""
        if generation not in self._refills:
            self._refills.add(generation)
            self._spawn(self._check(generation))

    async def _check(self, generation: Generation) -> bool:
        """Read state and log of a job; False if Redis did not answer."""
        was_enqueued = generation.is_enqueued
        try:
            # The state first: when it names an ending, the log read after it is complete.
            state = await queueing.job_state(self._redis, generation.job_id)
            for delta in await queueing.read_log(
                self._redis, generation.job_id, generation.next_index
            ):
                generation.put(delta)
            if state is not None:
                _put_state(generation, state)
            elif was_enqueued:
                generation.put(_lost(generation, "the queue has forgotten this job"))
        except codec.UnreadableError:
            generation.put(_lost(generation, "the job's log cannot be read"))
        except (RedisError, OSError) as error:
            logger.warning("cannot look after %s: %s", generation.job_id, type(error).__name__)
            return False
        finally:
            self._refills.discard(generation)
        return True

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_s)
            self._renew_if_silent()
            generations = [one for one in self._all() if not one.has_ended]
            for generation in generations:
                _give_up_if_late(generation)
            for generation in generations:
                if not await self._sweep(generation):
                    break  # each would wait as long for a Redis that is away

    def _renew_if_silent(self) -> None:
        """Subscribe anew, on a new connection, after a silence: no timer for each message."""
        if self._follower is not None and time.monotonic() - self._last_heard > SILENCE_S:
            self._follower.cancel()

    async def _sweep(self, generation: Generation) -> bool:
        """Look after a job that is due; False if Redis did not answer."""
        if generation.has_ended or generation not in self._generations.get(generation.job_id, ()):
            return True
        if generation in self._refills or not self._is_due(generation):
            return True
        self._refills.add(generation)
        return await self._check(generation)

    def _is_due(self, generation: Generation) -> bool:
        """Say whether a job has been silent long enough: 1, 2, 4, 8, 12, ... sweeps."""
        if time.monotonic() - generation.last_event < self._sweep_s:
            self._quiet_sweeps.pop(generation, None)
            return generation.has_gap
        quiet = self._quiet_sweeps[generation] = self._quiet_sweeps.get(generation, 0) + 1
        return quiet in (1, 2) or quiet % MAX_QUIET_SWEEPS == 0 or generation.has_gap

    def _all(self) -> list[Generation]:
        return [generation for readers in self._generations.values() for generation in readers]

    def _spawn(self, coroutine: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("reply channel task failed", exc_info=error)


def _put_state(generation: Generation, state: queueing.JobState) -> None:
    if state.position is not None:
        generation.position, generation.wait_s = state.position, state.wait_s
    # No news: else a silent job would look lively to the next sweep.
    if state.accepted is not None and not generation.is_accepted:
        generation.put(state.accepted)
    if state.ending is not None:
        generation.put(state.ending)
    elif state.status in ("failed", "stopped", "canceled"):
        generation.put(_lost(generation, f"the job ended as {state.status} without an answer"))


def _lost(generation: Generation, message: str) -> Failed:
    return Failed(generation.job_id, 500, message, "worker_lost")


def _give_up_if_late(generation: Generation) -> None:
    timeout_s = generation.job.timeout_s
    if generation.outlives_reader:
        return  # its end is told in Redis, and an operator may have given it more time
    if timeout_s is not None and time.monotonic() > generation.started + timeout_s + LATE_S:
        message = f"The request took longer than {timeout_s:g} seconds."
        generation.give_up(RequestTimeoutError(message))
