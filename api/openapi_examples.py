"""Examples for the OpenAPI document: one of each body and answer."""

from __future__ import annotations

from typing import Any

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

_MESSAGES = [{"role": "user", "content": "Tell me a story."}]
_STORY = "Once upon a time, there"
_CREATED = 1767225600

ERROR = {
    "error": {
        "message": "'temperature' must be at least 0.0 and at most 2.0, not 9.0.",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": "invalid_value",
    }
}

_COMPLETION = {
    "id": "cmpl-bb0b",
    "object": "text_completion",
    "created": _CREATED,
    "model": "tiny",
    "system_fingerprint": "5a731eca",
    "choices": [{"index": 0, "text": ", there was", "logprobs": None, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7},
}
_CHAT_COMPLETION = {
    "id": "chatcmpl-4cb3",
    "object": "chat.completion",
    "created": _CREATED,
    "model": "tiny",
    "system_fingerprint": "5a731eca",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": _STORY, "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
        }
    ],
    "usage": {
        "prompt_tokens": 16,
        "completion_tokens": 6,
        "total_tokens": 22,
        "prompt_tokens_details": {"cached_tokens": 0},
    },
    "metrics": {
        "speculative_decoding": {
            "mean_acceptance_length": 3.0,
            "draft_acceptance_rate": 1.0,
            "acceptance_histogram": [0, 0, 2],
            "num_spec_steps": 2,
            "num_accepted_draft_tokens": 4,
            "num_draft_tokens": 4,
        },
        "generation": {"mode": "deer", "lossless": True, "num_forwards": 4},
    },
}
_RESPONSE = {
    "id": "resp_2c70",
    "object": "response",
    "created_at": _CREATED,
    "completed_at": _CREATED + 1,
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "model": "tiny",
    "output": [
        {
            "type": "message",
            "id": "msg_6ed7",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": _STORY, "annotations": [], "logprobs": []}],
        }
    ],
    "usage": {
        "input_tokens": 16,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 22,
    },
    "background": False,
    "instructions": None,
    "max_output_tokens": 40,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "auto",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
_FILE = {
    "id": "file-1cdc",
    "object": "file",
    "bytes": 1838,
    "created_at": _CREATED,
    "expires_at": _CREATED + 2592000,
    "filename": "requests.jsonl",
    "purpose": "batch",
    "status": "processed",
}
_BATCH = {
    "id": "batch_af2f",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "model": "tiny",
    "errors": None,
    "input_file_id": "file-1cdc",
    "completion_window": "24h",
    "status": "in_progress",
    "output_file_id": None,
    "error_file_id": None,
    "created_at": _CREATED,
    "expires_at": _CREATED + 86400,
    "in_progress_at": _CREATED + 1,
    "request_counts": {"total": 2, "completed": 1, "failed": 0},
    "usage": {"input_tokens": 19, "output_tokens": 24, "total_tokens": 43},
    "metadata": {},
}
_MODEL = {
    "id": "tiny",
    "object": "model",
    "created": _CREATED,
    "owned_by": "dfastllm",
    "max_model_len": 2048,
    "modes": ["ar", "deer", "diffusion"],
}


def _page(item: dict[str, Any]) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [item],
        "first_id": item["id"],
        "last_id": item["id"],
        "has_more": False,
    }


_ITEM = {
    "id": "msg_1",
    "type": "message",
    "role": "user",
    "status": "completed",
    "content": [{"type": "input_text", "text": "Tell me a story."}],
}
_TEXT_BODY = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 3}
_HOLE_BODY = {"model": "tiny", "prompt": "Tom had a", "suffix": "red ball.", "max_tokens": 8}

BODIES: dict[tuple[str, str], Any] = {
    ("post", "/v1/completions"): _TEXT_BODY,
    ("post", "/v1/fim/completions"): _HOLE_BODY,
    ("post", "/v1/chat/completions"): {"model": "tiny", "messages": _MESSAGES, "max_tokens": 6},
    ("post", "/v1/responses"): {
        "model": "tiny",
        "input": "Tell me a story.",
        "max_output_tokens": 40,
    },
    ("post", "/v1/jobs"): JOB_REQUEST,
    ("post", "/v1/batches"): {
        "input_file_id": "file-1cdc",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    },
    ("post", "/tokenize"): {"model": "tiny", "prompt": "Once upon a time"},
    ("post", "/detokenize"): {"model": "tiny", "tokens": [1230, 1303]},
}

FORMS: dict[tuple[str, str], Any] = {
    ("post", "/v1/files"): {
        "schema": {
            "type": "object",
            "required": ["file", "purpose"],
            "properties": {
                "file": {"type": "string", "format": "binary", "description": "JSON lines."},
                "purpose": {"type": "string", "enum": ["batch"]},
                "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                "expires_after[seconds]": {
                    "type": "integer",
                    "minimum": 3600,
                    "maximum": 2592000,
                },
            },
        },
    }
}

ANSWERS: dict[tuple[str, str], Any] = {
    ("post", "/v1/completions"): _COMPLETION,
    ("post", "/v1/fim/completions"): _COMPLETION,
    ("post", "/v1/chat/completions"): _CHAT_COMPLETION,
    ("post", "/v1/responses"): _RESPONSE,
    ("get", "/v1/responses/{response_id}"): _RESPONSE,
    ("post", "/v1/responses/{response_id}/cancel"): _RESPONSE | {"status": "cancelled"},
    ("delete", "/v1/responses/{response_id}"): {
        "id": "resp_2c70",
        "object": "response",
        "deleted": True,
    },
    ("get", "/v1/responses/{response_id}/input_items"): _page(_ITEM),
    ("post", "/v1/jobs"): JOB,
    ("get", "/v1/jobs"): _page(JOB),
    ("get", "/v1/jobs/{job_id}"): JOB,
    ("delete", "/v1/jobs/{job_id}"): JOB | {"status": "canceled"},
    ("post", "/v1/files"): _FILE,
    ("get", "/v1/files"): _page(_FILE),
    ("get", "/v1/files/{file_id}"): _FILE,
    ("delete", "/v1/files/{file_id}"): {"id": "file-1cdc", "object": "file", "deleted": True},
    ("post", "/v1/batches"): _BATCH | {"status": "validating"},
    ("get", "/v1/batches"): _page(_BATCH),
    ("get", "/v1/batches/{batch_id}"): _BATCH,
    ("post", "/v1/batches/{batch_id}/cancel"): _BATCH | {"status": "cancelling"},
    ("get", "/v1/models"): {"object": "list", "data": [_MODEL]},
    ("get", "/v1/models/{name}"): _MODEL,
    ("post", "/tokenize"): {
        "count": 2,
        "max_model_len": 2048,
        "tokens": [1230, 1303],
        "token_strs": None,
    },
    ("post", "/detokenize"): {"prompt": "Once upon"},
    ("get", "/tokenizer_info"): {
        "model": "tiny",
        "max_model_len": 2048,
        "eos_token": "<|im_end|>",
        "chat_template": None,
    },
    ("get", "/health"): {"status": "ok"},
    ("get", "/ready"): {"status": "ready", "workers": 1},
    ("get", "/load"): {"server_load": 3},
    ("get", "/version"): {"version": "0.1.0"},
    ("get", "/metrics"): 'dfastllm_workers{model_name="tiny"} 1.0\n',
}
