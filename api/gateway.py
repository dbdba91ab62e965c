"""The seam between HTTP and the queue: submit a job, get its `Generation`; look around."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Awaitable
from typing import Protocol, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.errors import KeyQueueIsFullError, QueueIsFullError, UnavailableError
from api.generation import Generation
from api.reply_channel import ReplyChannel
from api.settings import ApiSettings
from worker.wire import codec, keys, queueing
from worker.wire.messages import GenerateJob, ModelInfo, WorkerInfo

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_ATTEMPTS = 3  # runs of a job whose workers die
MODELS_TTL_S = 1.0
SUBSCRIBE_TIMEOUT_S = 2.0
CANCEL_TRIES = 4
SHUTDOWN_S = 2.0


class GenerationGateway(Protocol):
    """What the handlers know of the queue; `tests.api.fakes.FakeGateway` is the other one."""

    @property
    def api_id(self) -> str: ...

    async def submit(self, job: GenerateJob, priority: str) -> Generation:
        """Enqueue a job. Raises QueueIsFullError or UnavailableError, and then nothing runs."""
        ...

    async def models(self, *, is_fresh: bool = False) -> list[ModelInfo]:
        """Return the models known, as of a moment ago unless `is_fresh`."""
        ...

    async def silent_s(self, model: str) -> float:
        """Return for how long no worker has offered a model, as `models` last saw it."""
        ...

    async def workers(self) -> list[WorkerInfo]: ...

    async def queue_lengths(self) -> dict[str, int]: ...


class RedisGateway:
    """The gateway over Redis. `start` it before the first job, `close` it last."""

    def __init__(self, redis: Redis, settings: ApiSettings) -> None:
        self.api_id = uuid.uuid4().hex[:12]
        self._redis = redis
        self._settings = settings
        self._channel = ReplyChannel(redis, self.api_id, sweep_s=settings.sweep_s)
        self._models: list[queueing.KnownModel] = []
        self._models_until = -math.inf
        self._cancellations: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._channel.start()
        if not await self._channel.wait_subscribed(SUBSCRIBE_TIMEOUT_S):
            logger.warning("the queue does not answer yet; requests get 503 until it does")

    async def close(self) -> None:
        if self._cancellations:
            await asyncio.wait(self._cancellations, timeout=SHUTDOWN_S)
        await self._channel.close()

    async def submit(self, job: GenerateJob, priority: str) -> Generation:
        if not await self._channel.wait_subscribed(SUBSCRIBE_TIMEOUT_S):
            raise UnavailableError("The queue cannot be reached.")
        generation = Generation(job, self._on_close)
        # Before the job exists: its answer may come before the reply of `enqueue` does.
        self._channel.register(generation)
        try:
            generation.position = await self._enqueue(job, priority)
        except queueing.TenantQueueFullError as error:
            self._channel.unregister(generation)
            raise KeyQueueIsFullError(
                f"{error.queue_length} requests of this key are waiting, as many as may; "
                "try again later.",
                retry_after_s=error.retry_after_s,
            ) from None
        except queueing.QueueFullError as error:
            self._channel.unregister(generation)
            raise QueueIsFullError(
                f"{error.queue_length} requests are waiting, as many as may; try again later.",
                retry_after_s=error.retry_after_s,
            ) from None
        except queueing.StoreFullError:
            self._channel.unregister(generation)
            raise UnavailableError("The queue's store is full; try again later.") from None
        except BaseException as error:
            # Redis may have got it all the same, and nobody would read the answer.
            generation.close()
            if isinstance(error, (RedisError, OSError)):
                raise UnavailableError("The queue cannot be reached.") from error
            raise
        generation.is_enqueued = True
        return generation

    async def models(self, *, is_fresh: bool = False) -> list[ModelInfo]:
        return [known.info for known in await self._known_models(is_fresh)]

    async def silent_s(self, model: str) -> float:
        known = await self._known_models()
        return min((one.silent_s for one in known if one.info.name == model), default=math.inf)

    async def _known_models(self, is_fresh: bool = False) -> list[queueing.KnownModel]:
        if is_fresh or time.monotonic() > self._models_until:
            self._models = await _reachable(queueing.known_models(self._redis))
            self._models_until = time.monotonic() + MODELS_TTL_S
        return self._models

    async def workers(self) -> list[WorkerInfo]:
        return await _reachable(queueing.live_workers(self._redis))

    async def queue_lengths(self) -> dict[str, int]:
        names = [name for model in await self.models() for name in keys.queue_names(model.name)]
        return await _reachable(queueing.queue_lengths(self._redis, names))

    async def _enqueue(self, job: GenerateJob, priority: str) -> int:
        settings = self._settings
        return await queueing.enqueue(
            self._redis,
            job,
            queue=keys.queue_name(job.model, priority),
            timeout_s=math.ceil(job.timeout_s or settings.request_timeout),
            result_ttl_s=settings.result_ttl,
            failure_ttl_s=settings.failure_ttl,
            max_queue_size=settings.max_queue_size,
            max_attempts=MAX_ATTEMPTS,
            max_running=settings.max_running_per_key,
            max_waiting=settings.max_queued_per_key,
        )

    def _on_close(self, generation: Generation) -> None:
        self._channel.unregister(generation)
        if not generation.may_still_run:
            return
        # A task of its own: whoever closes is often being cancelled, and could not await.
        task = asyncio.get_running_loop().create_task(self._cancel(generation.job_id))
        self._cancellations.add(task)
        task.add_done_callback(self._cancellations.discard)

    async def _cancel(self, job_id: str) -> None:
        for attempt in range(CANCEL_TRIES):
            try:
                await queueing.cancel(self._redis, job_id)
                return
            except (RedisError, OSError) as error:
                logger.warning("cannot cancel %s: %s", job_id, type(error).__name__)
                await asyncio.sleep(0.1 * 4**attempt)


async def _reachable(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except (RedisError, OSError, codec.UnreadableError) as error:
        raise UnavailableError("The queue cannot be reached.") from error
