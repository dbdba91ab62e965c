"""Examples for the OpenAPI document: the beginning or end of each stream."""

from __future__ import annotations

_TEXT_STREAM = """\
data: {"id":"cmpl-bb0b","object":"text_completion","created":1767225600,"model":"tiny",\
"system_fingerprint":"5a731eca","choices":[{"index":0,"text":", there","logprobs":null,\
"finish_reason":null}]}

data: [DONE]

"""
_CHAT_STREAM = """\
data: {"id":"chatcmpl-4cb3","object":"chat.completion.chunk","created":1767225600,"model":"tiny",\
"system_fingerprint":"5a731eca","choices":[{"index":0,"delta":{"content":"Once"},"logprobs":null,\
"finish_reason":null}]}

data: [DONE]

"""
_RESPONSE_STREAM = """\
event: response.output_text.delta
data: {"type":"response.output_text.delta","sequence_number":4,"item_id":"msg_6ed7",\
"output_index":0,"content_index":0,"delta":"Once","logprobs":[]}

"""
STREAMS: dict[tuple[str, str], str] = {
    ("post", "/v1/completions"): _TEXT_STREAM,
    ("post", "/v1/fim/completions"): _TEXT_STREAM,
    ("post", "/v1/chat/completions"): _CHAT_STREAM,
    ("post", "/v1/responses"): _RESPONSE_STREAM,
    ("get", "/v1/responses/{response_id}"): _RESPONSE_STREAM,
    ("get", "/v1/jobs/{job_id}/events"): "id: 0\n" + _CHAT_STREAM,
}
