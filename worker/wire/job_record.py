"""What the API alone needs of a request; it travels beside the job, and no worker reads it."""

from __future__ import annotations

from msgspec import Struct, field


class Webhook(Struct, frozen=True, omit_defaults=True):
    """Whom to tell of a job's end. Without a secret of its own it is signed with the server's."""

    url: str
    secret: str = ""


class JobRecord(Struct, frozen=True, omit_defaults=True):
    """What the API alone needs of a request, so that any process of it can write the answer.

    The field `dfl_job` of the RQ job hash.
    """

    system_fingerprint: str = ""
    include_usage: bool = False
    return_token_ids: bool = False
    custom_id: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    webhook: Webhook | None = None
    continuous_usage: bool = False  # usage so far in every chunk of a stream
    obfuscation: bool = False  # chunks of like lengths, whatever their text
    draft_events: bool = False  # chunks say what was drafted and what of it stood
    diffusing: bool = False  # chunks are snapshots of the whole text, not additions to it
    response: str = ""  # JSON: what a response (/v1/responses) repeats of its request
    service_tier: str = ""  # the one that is used, where the request named any
