"""Responses that outlive their request, in a real queue with real worker processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
import redis
from openai.types.responses import Response

from api.app import create_app
from api.settings import ApiSettings
from tests.api.fakes import serving
from tests.api.scripted_worker import wait_until
from tests.valkey import Valkey
from tests.worker_bench import MODEL, running_worker
from worker.wire import keys

ASK: dict[str, Any] = {"model": MODEL, "seed": 3}


@contextmanager
def _client(server: Valkey, key: str = "one", **settings: Any) -> Iterator[openai.OpenAI]:
    configured = ApiSettings(redis_url=server.url, api_key=["one", "two"], **settings)
    with (
        serving(create_app(configured)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) as client,
    ):
        wait_until(lambda: httpx.get(f"{url}/ready").status_code == 200, "it is ready", 30)
        yield client


def _ended(client: openai.OpenAI, response_id: str) -> Response:
    def look() -> Response:
        return client.responses.retrieve(response_id)

    wait_until(lambda: look().status not in ("queued", "in_progress"), "it has ended")
    return look()


def _create(client: openai.OpenAI, **fields: Any) -> Any:
    body = {"max_output_tokens": 20, **fields}
    return client.responses.create(model=MODEL, extra_body={"seed": 3}, **body)


def test_a_background_response_is_polled_through_any_process(valkey: Valkey) -> None:
    with (
        running_worker(valkey, "w1", step_s=0.01),
        _client(valkey) as first,
        _client(valkey) as second,
    ):
        whole = _create(first, input="tell me")
        begun = _create(first, input="tell me", background=True)
        assert begun.status in ("queued", "in_progress")
        ended = _ended(second, begun.id)
        assert ended.status == "incomplete"  # the fake engine goes on until its limit
        assert ended.output_text == whole.output_text != ""
        assert ended.usage is not None
        assert ended.usage.output_tokens == 20
        assert second.responses.retrieve(whole.id).output_text == whole.output_text


def test_a_stream_is_taken_up_again_where_it_broke_off(valkey: Valkey) -> None:
    with (
        running_worker(valkey, "w1", step_s=0.01),
        _client(valkey) as first,
        _client(valkey) as second,
    ):
        seen: list[Any] = []
        with _create(first, input="tell me", background=True, stream=True) as stream:
            for event in stream:
                seen.append(event)
                if len(seen) == 9:
                    break
        response_id = seen[0].response.id
        rest = list(
            second.responses.retrieve(
                response_id, stream=True, starting_after=seen[-1].sequence_number
            )
        )
        numbers = [event.sequence_number for event in [*seen, *rest]]
        assert numbers == list(range(len(numbers)))
        text = "".join(
            event.delta for event in [*seen, *rest] if event.type == "response.output_text.delta"
        )
        assert text == _ended(first, response_id).output_text


def test_a_conversation_goes_on_from_a_response(valkey: Valkey, redis_client: redis.Redis) -> None:
    with running_worker(valkey, "w1"), _client(valkey) as client:
        first = _create(client, input="one", instructions="Count.")
        second = _create(client, input="two", previous_response_id=first.id)
        assert second.previous_response_id == first.id
        items = client.responses.input_items.list(second.id).data
        assert [item.role for item in items] == ["user", "assistant", "user"]  # type: ignore[union-attr]
        assert items[1].content[0].text == first.output_text  # type: ignore[union-attr]
        assert items[0].content[0].text == "two"  # type: ignore[union-attr]
        pages = client.responses.input_items.list(second.id, limit=2, order="asc")
        assert [item.id for item in pages] == [item.id for item in reversed(items)]
        assert len(pages.data) == 2 and pages.has_more
        with pytest.raises(openai.BadRequestError):
            client.responses.input_items.list(second.id, after="none")
        with pytest.raises(openai.NotFoundError):
            _create(client, input="two", previous_response_id="resp_none")


def test_cancel_ends_a_running_response_and_delete_forgets_it(
    valkey: Valkey, redis_client: redis.Redis
) -> None:
    with running_worker(valkey, "w1", step_s=0.05), _client(valkey) as client:
        begun = _create(client, input="tell me", background=True, max_output_tokens=2000)
        with pytest.raises(openai.ConflictError):
            client.responses.delete(begun.id)
        client.responses.cancel(begun.id)
        assert _ended(client, begun.id).status == "cancelled"
        assert client.responses.cancel(begun.id).status == "cancelled"
        client.responses.delete(begun.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(begun.id)
        assert redis_client.hget(keys.job(begun.id), "dfl") is None
        assert redis_client.exists(keys.log(begun.id)) == 0
        foreground = _create(client, input="x")
        with pytest.raises(openai.ConflictError):
            client.responses.cancel(foreground.id)


def test_a_response_is_its_tenants_alone_and_only_where_it_is_stored(valkey: Valkey) -> None:
    with running_worker(valkey, "w1"), _client(valkey) as one, _client(valkey, "two") as two:
        mine = _create(one, input="x")
        unstored = _create(one, input="x", store=False)
        calls: list[Callable[[], object]] = [
            lambda: two.responses.retrieve(mine.id),
            lambda: two.responses.cancel(mine.id),
            lambda: two.responses.delete(mine.id),
            lambda: _create(two, input="y", previous_response_id=mine.id),
            lambda: one.responses.retrieve(unstored.id),
        ]
        for call in calls:
            with pytest.raises(openai.NotFoundError):
                call()
        assert one.responses.retrieve(mine.id).status == "incomplete"


def test_a_client_that_leaves_takes_a_foreground_response_with_it(valkey: Valkey) -> None:
    with running_worker(valkey, "w1", step_s=0.05), _client(valkey) as client:
        with _create(client, input="x", stream=True, max_output_tokens=2000) as stream:
            created: Any = next(iter(stream))
        assert _ended(client, created.response.id).status == "cancelled"


def test_asking_again_with_the_same_key_gives_the_same_response(valkey: Valkey) -> None:
    headers = {"Idempotency-Key": "k1"}
    with running_worker(valkey, "w1"), _client(valkey) as client:
        first = _create(client, input="x", extra_headers=headers)
        begun = time.time()
        again = _create(client, input="x", extra_headers=headers)
        assert again.id == first.id
        assert again.created_at <= begun
        client.responses.delete(first.id)
        anew = _create(client, input="x", extra_headers=headers)
        assert anew.id != first.id


def test_a_background_response_says_whose_job_it_is(valkey: Valkey) -> None:
    headers = {"Idempotency-Key": "k1"}
    with running_worker(valkey, "w1"), _client(valkey) as client:
        raw = client.responses.with_raw_response
        ask: dict[str, Any] = {"model": MODEL, "input": "x", "background": True}
        first, again = (
            raw.create(**ask, max_output_tokens=5, extra_headers=headers) for _ in range(2)
        )
        assert first.headers["x-job-id"] == again.headers["x-job-id"] == first.parse().id
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
