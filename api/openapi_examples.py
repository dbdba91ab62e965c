"""Examples for the OpenAPI page."""

from __future__ import annotations

JOB_REQUEST = {
    "custom_id": "row-17",
    "url": "/v1/chat/completions",
    "body": {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": 200,
        "max_queue_time": 600,
    },
    "metadata": {"run": "nightly"},
    "webhook": {"url": "https://example.com/hooks/stories"},
}

JOB = {
    "id": "chatcmpl-2f7c",
    "object": "job",
    "url": "/v1/chat/completions",
    "model": "tiny",
    "status": "queued",
    "custom_id": "row-17",
    "metadata": {"run": "nightly"},
    "created_at": 1767225600.0,
    "started_at": None,
    "ended_at": None,
    "expires_at": None,
    "position": 12,
    "estimated_start_at": 1767225607.5,
    "attempts": 0,
    "progress": {"prompt_tokens": None, "completion_tokens": 0, "max_tokens": 200},
    "response": None,
    "webhook": {
        "url": "https://example.com/hooks/stories",
        "state": "waiting",
        "attempts": 0,
        "next_attempt_at": None,
        "last_attempt_at": None,
        "last_status_code": None,
        "last_error": None,
    },
    "links": {"self": "/v1/jobs/chatcmpl-2f7c", "events": "/v1/jobs/chatcmpl-2f7c/events"},
}
