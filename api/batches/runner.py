"""Works on batches, in every API process; whoever dies leaves his to the others."""

from __future__ import annotations

import asyncio
import logging

from redis.exceptions import RedisError

from api.batches import hold
from api.batches.hold import TakenOverError
from api.batches.run import BatchRun, Desks
from api.errors import ApiError
from worker.wire import batch_store, codec

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 8
LOOK_S = 1.0
TIDY_S = 3600.0


class BatchRunner:
    """A task beside the requests. `start` it once, `close` it last."""

    def __init__(self, desks: Desks) -> None:
        self._desks = desks
        self._runs: dict[asyncio.Task[None], BatchRun] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._look()), asyncio.create_task(self._tidy())]

    async def close(self) -> None:
        """Stop, and leave the batches for others to take at once."""
        runs = dict(self._runs)
        for task in [*self._tasks, *runs]:
            task.cancel()
        await asyncio.gather(*self._tasks, *runs, return_exceptions=True)
        for run in runs.values():
            try:
                await run.hold.give_back()
            except (RedisError, OSError):
                return  # their leases will run out

    async def _look(self) -> None:
        while True:
            try:
                await self._take()
            except (RedisError, OSError) as error:
                logger.warning("cannot look for batches: %s", type(error).__name__)
            except Exception:  # boundary: one look; the next may find better
                logger.exception("looking for batches failed")
            await asyncio.sleep(LOOK_S)

    async def _take(self) -> None:
        limit = MAX_AT_ONCE - len(self._runs)
        if limit == 0:
            return
        for batch_id, epoch in await batch_store.take(self._desks.redis, limit, hold.LEASE_S):
            try:
                batch = await batch_store.get_batch(self._desks.redis, batch_id)
            except codec.UnreadableError as error:  # the others must not wait for it
                logger.warning("batch %s: %s", batch_id, error)
                continue
            if batch is not None:
                run = BatchRun(self._desks, batch, epoch)
                task = asyncio.create_task(_work(run, batch_id))
                self._runs[task] = run
                task.add_done_callback(self._runs.pop)

    async def _tidy(self) -> None:
        while True:
            try:
                await self._desks.files.drop_forgotten()
            except (ApiError, RedisError, OSError) as error:
                logger.warning("cannot tidy up files: %s", type(error).__name__)
            await asyncio.sleep(TIDY_S)


async def _work(run: BatchRun, batch_id: str) -> None:
    try:
        await run.run()
    except TakenOverError:
        logger.warning("batch %s is another process's now", batch_id)
    except (ApiError, RedisError, OSError) as error:
        # Its lease will run out, and whoever takes it goes on.
        logger.warning("batch %s: %s", batch_id, error)
    except Exception:  # boundary: one batch
        logger.exception("batch %s", batch_id)
