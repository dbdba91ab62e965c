"""Responses that are there already, as jobs of their tenant."""

from __future__ import annotations

from typing import Any

import msgspec
from redis.asyncio import Redis

from api.errors import ConflictError, GenerationFailedError, JobNotFoundError
from api.gateway import reachable
from api.response_api.objects import Asked, MessageItem, ResponseBody
from api.response_api.writer import ResponseWriter
from api.schemas import FunctionCallParam, MessageParam, ToolCallParam
from worker.wire import job_views, queueing
from worker.wire.job_views import JobView
from worker.wire.messages import Chat, ChatMessage, Delta, Failed, Finished, Rejected

# A job is deferred while as many of its key run as may.
_RUNNING = {"queued": "queued", "deferred": "queued", "started": "in_progress"}
_GIVEN_UP = ("canceled", "stopped")


class ResponseDesk:
    """Looks at responses, and ends and forgets them, through whichever API process."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def look(self, response_id: str, tenant: str) -> ResponseBody:
        """Return a response as it is now; raises JobNotFoundError or UnavailableError."""
        view, deltas, asked = await self._read(response_id, tenant)
        return _body(view, deltas, asked)

    async def turns(self, response_id: str, tenant: str) -> list[MessageParam]:
        """Return the conversation up to and with a response, but for its instructions."""
        view, deltas, asked = await self._read(response_id, tenant)
        if not isinstance(view.ending, Finished):
            raise ConflictError(f"The response '{response_id}' has no output to go on after.")
        output = _body(view, deltas, asked).output
        messages = [_turn(message) for message in _input_of(view, asked)]
        calls: list[ToolCallParam] = []
        for item in output:
            if isinstance(item, MessageItem):
                text = "".join(part.text for part in item.content)
                messages.append(MessageParam(role="assistant", content=text))
            else:
                function = FunctionCallParam(name=item.name, arguments=item.arguments)
                calls.append(ToolCallParam(id=item.call_id, type="function", function=function))
        if calls:
            messages.append(MessageParam(role="assistant", content="", tool_calls=calls))
        return messages

    async def input_items(self, response_id: str, tenant: str) -> list[dict[str, Any]]:
        """Return what a response was asked, as input items."""
        view, _, asked = await self._read(response_id, tenant)
        items = []
        for index, message in enumerate(_input_of(view, asked)):
            items += _items(message, f"{response_id}_{index}")
        return items

    async def cancel(self, response_id: str, tenant: str) -> ResponseBody:
        """Cancel a background response, unless it has ended, and return it; raises as `look`."""
        _, _, asked = await self._read(response_id, tenant)
        if not asked.background:
            raise ConflictError("Only a response with 'background' can be cancelled.")
        await reachable(queueing.cancel(self._redis, response_id, tenant))
        return await self.look(response_id, tenant)

    async def delete(self, response_id: str, tenant: str) -> None:
        """Forget a response that has ended; raises as `look`, or ConflictError while it runs."""
        await self._read(response_id, tenant)
        is_gone = await reachable(job_views.forget(self._redis, response_id, tenant))
        if is_gone is False:
            raise ConflictError("The response has not ended; cancel it before you delete it.")

    async def _read(self, response_id: str, tenant: str) -> tuple[JobView, list[Delta], Asked]:
        view = await reachable(job_views.view(self._redis, response_id, tenant))
        if view is None or not view.record.response:
            raise JobNotFoundError(response_id)
        asked = msgspec.json.decode(view.record.response, type=Asked)
        if not asked.store:
            raise JobNotFoundError(response_id)
        # After the state: where that names an ending, the log is complete.
        deltas = await reachable(queueing.read_log(self._redis, response_id))
        return view, deltas, asked


def _body(view: JobView, deltas: list[Delta], asked: Asked) -> ResponseBody:
    writer = ResponseWriter(view.job, asked, view.ended_at)
    match view.ending:
        case Finished(num_deltas=num_deltas) as finished if num_deltas == len(deltas):
            return writer.whole(deltas, finished)
    for delta in deltas:
        writer.write(delta)
    if view.status in _RUNNING:
        return writer.body(_RUNNING[view.status])
    if view.status in _GIVEN_UP:
        return writer.body("cancelled")
    match view.ending:
        case Failed() | Rejected() as event:
            error = GenerationFailedError(event.status, event.message, code=event.code)
        case _:
            error = GenerationFailedError(500, f"The response was ended as {view.status}.")
    return writer.failed(error)


def _input_of(view: JobView, asked: Asked) -> list[ChatMessage]:
    assert isinstance(view.job.input, Chat)
    has_instructions = asked.instructions is not None
    return view.job.input.messages[1:] if has_instructions else view.job.input.messages


def _turn(message: ChatMessage) -> MessageParam:
    calls = [
        ToolCallParam(
            id=call.id,
            type="function",
            function=FunctionCallParam(name=call.name, arguments=call.arguments),
        )
        for call in message.tool_calls
    ]
    # The worker's messages have no other roles than those of a request.
    return msgspec.convert(
        {
            "role": message.role,
            "content": message.content,
            "name": message.name,
            "tool_call_id": message.tool_call_id,
            "tool_calls": [msgspec.to_builtins(call) for call in calls] or None,
        },
        MessageParam,
    )


def _items(message: ChatMessage, name: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if message.role == "tool":
        output = {"call_id": message.tool_call_id, "output": message.content}
        return [{"id": f"fco_{name}", "type": "function_call_output", **output}]
    if message.content or not message.tool_calls:
        kind = "output_text" if message.role == "assistant" else "input_text"
        content = [{"type": kind, "text": message.content}]
        items.append(
            {"id": f"msg_{name}", "type": "message", "role": message.role, "content": content}
        )
    items += [
        {
            "id": f"fc_{name}_{index}",
            "type": "function_call",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
        }
        for index, call in enumerate(message.tool_calls)
    ]
    return items
