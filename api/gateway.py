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

from api.errors import (
    GenerationFailedError,
    JobNotFoundError,
    KeyQueueIsFullError,
    KeyReusedError,
    QueueIsFullError,
    StoreIsFullError,
    UnavailableError,
)
from api.generation import Generation
from api.reply_channel import ReplyChannel
from api.settings import ApiSettings
from worker.wire import codec, job_views, keys, questions, queue_state, queueing
from worker.wire.messages import Answered, Event, GenerateJob, ModelInfo, Rejected, WorkerInfo
from worker.wire.questions import Question, Topic
from worker.wire.queue_state import QueueState, StoreMemory
from worker.wire.queueing import NO_TERMS, Receipt, Terms

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_ATTEMPTS = 3  # runs of a job whose workers die
MODELS_TTL_S = 1.0
SUBSCRIBE_TIMEOUT_S = 2.0
CANCEL_TRIES = 4
SHUTDOWN_S = 2.0
ASK_AGAIN_S = 2.0
MAX_ASKS = 4


class GenerationGateway(Protocol):
    """What the handlers know of the queue; `tests.api.fakes.FakeGateway` is the other one."""

    @property
    def api_id(self) -> str: ...

    async def submit(self, job: GenerateJob, priority: str, terms: Terms = NO_TERMS) -> Generation:
        """Enqueue a job, or join the one that its idempotency key has made.

        Raises KeyReusedError, QueueIsFullError or UnavailableError, and then nothing runs.
        """
        ...

    async def enqueue(self, job: GenerateJob, priority: str, terms: Terms) -> Receipt:
        """Enqueue a job that nobody waits for; raises as `submit`."""
        ...

    async def follow(self, job_id: str, tenant: str) -> Generation:
        """Read along with a job that is there; raises JobNotFoundError or UnavailableError."""
        ...

    def hand_over(self) -> None:
        """From now on a stream whose reader goes is left to run: the process is about to stop."""
        ...

    async def models(self, *, is_fresh: bool = False) -> list[ModelInfo]:
        """Return the models known, as of a moment ago unless `is_fresh`."""
        ...

    async def is_served(self, model: str, *, is_fresh: bool = False) -> bool:
        """Say whether a worker offers a model, or did so shortly ago."""
        ...

    async def ask(self, model: str, about: Topic) -> Answered:
        """Ask any worker of a model. Raises UnavailableError, or what the worker refused it for."""
        ...

    async def workers(self) -> list[WorkerInfo]: ...

    async def queues(self) -> dict[str, QueueState]:
        """Return every queue of the models known, by its name."""
        ...

    async def store_memory(self) -> StoreMemory | None:
        """Return how full Redis is; None where it does not say."""
        ...


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
        self._hands_over = False

    async def start(self) -> None:
        self._channel.start()
        if not await self._channel.wait_subscribed(SUBSCRIBE_TIMEOUT_S):
            logger.warning("the queue does not answer yet; requests get 503 until it does")

    async def close(self) -> None:
        if self._cancellations:
            await asyncio.wait(self._cancellations, timeout=SHUTDOWN_S)
        await self._channel.close()

    async def submit(self, job: GenerateJob, priority: str, terms: Terms = NO_TERMS) -> Generation:
        await self._require_channel()
        generation = Generation(
            job, self._on_close, terms.record, outlives_reader=terms.outlives_client
        )
        # Before the job exists: its answer may come before the reply of `enqueue` does.
        self._channel.register(generation)
        try:
            receipt = await self.enqueue(job, priority, terms)
        except (QueueIsFullError, KeyQueueIsFullError, StoreIsFullError, KeyReusedError):
            self._channel.unregister(generation)
            raise
        except BaseException:
            # Redis may have got it all the same, and nobody would read the answer.
            generation.close()
            raise
        if receipt.is_joined:
            self._channel.unregister(generation)
            return await self.follow(receipt.job_id, job.tenant)
        generation.position = receipt.position
        generation.is_enqueued = True
        return generation

    async def follow(self, job_id: str, tenant: str) -> Generation:
        await self._require_channel()
        found = await reachable(job_views.follow(self._redis, job_id, tenant, self.api_id))
        if found is None:
            raise JobNotFoundError(job_id)
        generation = Generation(found.job, self._on_close, found.record, outlives_reader=True)
        generation.is_joined = generation.is_enqueued = True
        self._channel.register(generation)
        try:
            await self._channel.fill(generation)
        except BaseException:
            generation.close()
            raise
        return generation

    async def enqueue(self, job: GenerateJob, priority: str, terms: Terms) -> Receipt:
        """Put a job into its queue, whoever may read the answer; raises as `submit`."""
        try:
            return await self._enqueue(job, priority, terms)
        except queueing.TenantQueueFullError as error:
            raise KeyQueueIsFullError(
                f"{error.queue_length} requests of this key are waiting, as many as may; "
                "try again later.",
                retry_after_s=error.retry_after_s,
            ) from None
        except queueing.QueueFullError as error:
            raise QueueIsFullError(
                f"{error.queue_length} requests are waiting, as many as may; try again later.",
                retry_after_s=error.retry_after_s,
            ) from None
        except queueing.StoreFullError:
            raise StoreIsFullError("The queue's store is full; try again later.") from None
        except queueing.KeyReusedError:
            raise KeyReusedError from None
        except (RedisError, OSError) as error:
            raise UnavailableError("The queue cannot be reached.") from error

    async def models(self, *, is_fresh: bool = False) -> list[ModelInfo]:
        return [known.info for known in await self._known_models(is_fresh)]

    async def is_served(self, model: str, *, is_fresh: bool = False) -> bool:
        patience_s = self._settings.worker_patience
        known = await self._known_models(is_fresh)
        return any(one.info.name == model and one.silent_s <= patience_s for one in known)

    async def _known_models(self, is_fresh: bool = False) -> list[queueing.KnownModel]:
        if is_fresh or time.monotonic() > self._models_until:
            self._models = await reachable(queueing.known_models(self._redis))
            self._models_until = time.monotonic() + MODELS_TTL_S
        return self._models

    async def ask(self, model: str, about: Topic) -> Answered:
        await self._require_channel()
        question = Question(uuid.uuid4().hex, self.api_id, about)
        with self._channel.expecting(question.question_id) as answer:
            for _ in range(MAX_ASKS):
                await reachable(questions.ask(self._redis, model, question))
                await asyncio.wait([answer], timeout=ASK_AGAIN_S)
                if answer.done():
                    return _answered(answer.result())
        raise UnavailableError(f"No worker of model '{model}' answers.")

    async def workers(self) -> list[WorkerInfo]:
        return await reachable(queueing.live_workers(self._redis))

    async def queues(self) -> dict[str, QueueState]:
        names = [name for model in await self.models() for name in keys.queue_names(model.name)]
        return await reachable(queue_state.queue_states(self._redis, names))

    async def store_memory(self) -> StoreMemory | None:
        return await reachable(queue_state.store_memory(self._redis))

    async def _require_channel(self) -> None:
        if not await self._channel.wait_subscribed(SUBSCRIBE_TIMEOUT_S):
            raise UnavailableError("The queue cannot be reached.")

    async def _enqueue(self, job: GenerateJob, priority: str, terms: Terms) -> Receipt:
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
            terms=terms,
        )

    def hand_over(self) -> None:
        self._hands_over = True

    def _on_close(self, generation: Generation) -> None:
        self._channel.unregister(generation)
        is_left = self._hands_over and generation.job.stream
        if is_left or not generation.may_still_run:
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


def _answered(event: Event) -> Answered:
    match event:
        case Answered():
            return event
        case Rejected():
            raise GenerationFailedError(
                event.status, event.message, param=event.param, code=event.code
            )
    raise UnavailableError("A worker gave an answer that cannot be read.")


async def reachable(answer: Awaitable[T]) -> T:
    """Wait for an answer of Redis; raises UnavailableError where none comes."""
    try:
        return await answer
    except (RedisError, OSError, codec.UnreadableError) as error:
        raise UnavailableError("The queue cannot be reached.") from error
