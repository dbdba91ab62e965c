"""Jobs that are asked for later: look, cancel, list."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from api.errors import InvalidRequestError, JobNotFoundError
from api.gateway import reachable
from api.job_bodies import job_body
from api.job_schemas import Job, JobList
from worker.wire import job_views, queueing


class JobDesk:
    """A tenant's view of his jobs, through whichever API process; those of others are not there."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def look(self, job_id: str, tenant: str) -> Job:
        """Return a job as it is now; raises JobNotFoundError or UnavailableError."""
        return (await self.look_with_secret(job_id, tenant))[0]

    async def look_with_secret(self, job_id: str, tenant: str) -> tuple[Job, str]:
        """Return a job and the secret of its webhook, empty where it brought none."""
        view = await reachable(job_views.view(self._redis, job_id, tenant))
        if view is None:
            raise JobNotFoundError(job_id)
        # After the state: where that names an ending, the log is complete.
        has_begun = view.attempt > 0
        deltas = await reachable(queueing.read_log(self._redis, job_id)) if has_begun else []
        webhook = view.record.webhook
        return job_body(view, deltas), webhook.secret if webhook else ""

    async def cancel(self, job_id: str, tenant: str) -> Job:
        """Cancel a job, unless it has ended, and return it; raises as `look`."""
        await reachable(queueing.cancel(self._redis, job_id, tenant))
        return await self.look(job_id, tenant)

    async def list(self, tenant: str, limit: int, after: str | None) -> JobList:
        """Return a tenant's submitted jobs that are still known, the newest first."""
        job_ids = await reachable(job_views.list_jobs(self._redis, tenant, limit, after))
        if job_ids is None:
            raise InvalidRequestError(f"There is no job '{after}' to go on after.", param="after")
        looks = (self._look_or_none(job_id, tenant) for job_id in job_ids[:limit])
        jobs = [job for job in await asyncio.gather(*looks) if job is not None]
        return JobList(
            data=jobs,
            first_id=jobs[0].id if jobs else None,
            last_id=jobs[-1].id if jobs else None,
            has_more=len(job_ids) > limit,
        )

    async def _look_or_none(self, job_id: str, tenant: str) -> Job | None:
        try:
            return await self.look(job_id, tenant)
        except JobNotFoundError:
            return None
